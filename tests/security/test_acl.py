"""Three users, each with what it needs and no more: the whole fleet runs under them, on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import redis
from guarded_server import captured_events

from pagefleet.api import FleetClient, keys
from pagefleet.api.celery_app import make_celery
from pagefleet.api.errors import RedisUnavailable
from pagefleet.api.settings import FleetSettings
from pagefleet.engine.backends.null import null_token
from pagefleet.workers.engine_loop import wait_until
from pagefleet.workers.local_stack import WorkerProcess

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02"]
NULL += ["--lease-seconds", "1", "--drain-seconds", "0", "--log-level", "DEBUG"]


def expected(seed, count):
    return [null_token(seed, 0, position) for position in range(count)]


@pytest.fixture
def workers(guarded, tmp_path):
    """Two worker processes that log in as ``worker``."""
    found = [
        WorkerProcess(guarded.url_of("worker"), NULL, log_file=tmp_path / f"worker-{index}.log").start()
        for index in range(2)
    ]
    try:
        for worker in found:
            worker.wait_ready(60)
        yield found
    finally:
        for worker in found:
            worker.terminate()
            worker.wait(20)


@pytest.fixture
def producer(guarded):
    with FleetClient(redis_url=guarded.url_of("producer")) as client:
        yield client


def test_a_fleet_lives_under_its_users(guarded, workers, producer):
    # A stream, an attached one, a cancel, a delete, a status: nothing is denied.
    assert producer.generate("x", max_tokens=20, seed=1, tenant="t").result().token_ids == expected(1, 20)
    long = producer.generate("x", max_tokens=4000, seed=2, lane="batch")
    next(long)
    with FleetClient(redis_url=guarded.url_of("producer")) as other:
        attached = other.attach(long.job_id)
        assert next(attached).token_ids
        attached.close()
    long.cancel()
    assert long.result().finish_reason == "cancelled"
    long.delete()
    assert len(producer.status().workers) == 2
    # A worker dies with running streams, another leaves: the tokens go on.
    streams = [producer.generate("x", max_tokens=150, seed=index) for index in range(8)]
    for stream in streams:
        next(stream)
    workers[0].send_signal(signal.SIGKILL)
    for index, stream in enumerate(streams):
        assert stream.result().token_ids == expected(index, 150)
    assert max(stream.result().attempts for stream in streams) == 2
    workers[0].wait(5)
    workers[0].start().wait_ready(60)
    streams = [producer.generate("x", max_tokens=150, seed=index) for index in range(8)]
    for stream in streams:
        next(stream)
    workers[1].terminate()
    for index, stream in enumerate(streams):
        assert stream.result().token_ids == expected(index, 150)
    assert workers[1].wait(20) == 0
    with guarded.admin() as admin:
        assert wait_until(lambda: not admin.zcard(keys.open_jobs("null.interactive")), 10)
    assert guarded.denied() == []


def test_a_monitor_sees_status_events_and_workers(guarded, workers, producer):
    status = [sys.executable, "-m", "pagefleet.api.cli.main", "status", "--json"]
    environment = os.environ | {"REDIS_URL": guarded.url_of("monitor")}
    shown = subprocess.run(status, env=environment, capture_output=True, text=True, check=True)
    assert len(json.loads(shown.stdout)["workers"]) == 2
    app = make_celery(FleetSettings(redis_url=guarded.url_of("monitor")))
    with captured_events(app) as seen:
        assert wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in seen), 15)
        producer.generate("x", max_tokens=3).result()
        assert wait_until(lambda: any(event["type"] == "task-succeeded" for event in seen), 10)
        assert len(app.control.inspect(timeout=2.0).ping()) == 2
    app.close()
    assert guarded.denied() == []


FORBIDDEN = [
    ("producer", "FLUSHALL"),
    ("producer", "CONFIG", "GET", "*"),
    ("producer", "KEYS", "*"),
    ("producer", "SCAN", "0"),
    ("producer", "GET", "another-service"),
    ("producer", "SET", "another-service", "1"),
    ("producer", "SET", "pf:model:null", "{}"),
    ("producer", "ZADD", "pf:workers", "1", "me"),
    ("producer", "SET", "pf:lease:w", "{}"),
    ("producer", "HSET", "pf:unacked:w", "a", "b"),
    ("producer", "PUBLISH", "/0.celery.pidbox", "{}"),
    ("producer", "SCRIPT", "FLUSH"),
    ("producer", "EVAL", "return redis.call('GET', 'another-service')", "0"),
    ("producer", "ACL", "LIST"),
    ("worker", "FLUSHALL"),
    ("worker", "CONFIG", "SET", "maxmemory", "1"),
    ("worker", "GET", "another-service"),
    ("worker", "SCRIPT", "FLUSH"),
    ("monitor", "SET", "pf:client:me", "1"),
    ("monitor", "HSET", "pf:job:a", "state", "D"),
    ("monitor", "DEL", "pf:job:a"),
    ("monitor", "LPUSH", "null.interactive", "{}"),
    ("monitor", "LRANGE", "pf:log:a", "0", "-1"),
    ("monitor", "HMGET", "another-service", "x"),
    ("monitor", "EVAL", "return redis.call('DEL', 'pf:models')", "0"),
    ("monitor", "FLUSHALL"),
]


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_what_is_not_needed_is_denied(guarded_for_all, command):
    user, *words = command
    with guarded_for_all.client_of(user) as client, pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*words)
    assert isinstance(caught.value, redis.exceptions.NoPermissionError) or "ACL failure" in str(caught.value)


def test_nobody_comes_in_without_a_name(guarded_for_all):
    with pytest.raises(RedisUnavailable, match="Authentication required"):
        FleetClient(redis_url=f"redis://127.0.0.1:{guarded_for_all.port}/0").models()


def test_a_user_who_lacks_a_right_gets_one_clear_sentence(guarded_for_all):
    url = guarded_for_all.url_of("monitor")
    with pytest.raises(RedisUnavailable, match="does not allow") as caught:
        FleetClient(redis_url=url).generate("x", model="null")
    assert "sentinel" not in str(caught.value)
    assert "ops/redis/users.acl" in str(caught.value)
