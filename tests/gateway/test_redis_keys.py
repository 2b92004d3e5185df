"""API keys in Redis: seen by every gateway within a second, and known on while Redis is away."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from click.testing import CliRunner

from pagefleet.api import FleetSettings
from pagefleet.api.cli.main import main
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ConfigurationError, RedisUnavailable
from pagefleet.api.gateway.access import keyring
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.access.redis_keys import RedisKeys
from pagefleet.api.gateway.server import serve
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.threads.polling import wait_until

SEEN_S = 3 * 1.0


@pytest.fixture
def server(server_binary, tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def place(store):
    keys_in_redis = RedisKeys(store.settings)
    yield keys_in_redis
    keys_in_redis.close()


def run(*arguments):
    done = CliRunner().invoke(main, ["keys", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def status_of(gateway, token, path="/v1/models"):
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(f"{gateway.url}{path}", headers=headers, timeout=30).status_code


def test_the_commands_and_two_gateways_and_an_outage(server, start_gateway):
    gateways = [start_gateway(server.url, keys_redis=1) for _ in range(2)]
    place = ("--redis", "--redis-url", server.url)
    gone, token = (
        run("add", "--tenant", "gone", *place).strip(),
        run("add", "--tenant", "acme", *place).strip(),
    )
    for gateway in gateways:
        assert wait_until(lambda at=gateway: status_of(at, token) == 200, SEEN_S, 0.05)
        assert [status_of(gateway, wrong) for wrong in ("pf-1", token[:-1], "stamp")] == [401] * 3
    listed = run("list", *place)
    assert "acme" in listed
    assert token not in listed
    run("revoke", gone[3:11], *place)
    for gateway in gateways:
        assert wait_until(lambda at=gateway: status_of(at, gone) == 401, SEEN_S, 0.05)
    again = CliRunner().invoke(main, ["keys", "revoke", gone[3:11], *place])
    assert (again.exit_code, "Redis has no key" in again.output) == (1, True)
    # While Redis is away it is known who may come in: there is only nothing to be had.
    server.kill()
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert (status_of(gateways[0], token), status_of(gateways[0], gone)) == (503, 401)
        # Slower than the limit on reads.
        time.sleep(0.1)
    server.start()
    assert wait_until(lambda: status_of(gateways[0], token) == 200, 60, 0.05)


def test_before_redis_was_ever_there_nobody_is_turned_away_for_good(start_gateway):
    assert status_of(start_gateway("redis://127.0.0.1:1/0", keys_redis=1), "pf-1") == 503
    with pytest.raises(RedisUnavailable):
        Keyring(RedisKeys(FleetSettings())).find("pf-1")


def test_redis_holds_no_key(store, place):
    token, key = place.add(tenant="acme", models=["a"], max_open=3, lane="batch")
    held = store.redis.hgetall(keys.API_KEYS)
    assert held.keys() == {key.key_id, keys.API_KEYS_STAMP}
    assert token.removeprefix(f"pf-{key.key_id}-") not in str(held)
    assert place.read() == [key]
    assert (key.models, key.max_open, key.lane) == (["a"], 3, "batch")
    assert not place.revoke(keys.API_KEYS_STAMP)
    assert store.redis.hget(keys.API_KEYS, keys.API_KEYS_STAMP) == held[keys.API_KEYS_STAMP]


def test_one_that_cannot_be_read_lets_nobody_in_and_keeps_nobody_out(store, place, caplog):
    token, _ = place.add(tenant="acme")
    broken, key = place.add(tenant="broken")
    moved, other = place.add(tenant="moved")
    store.redis.hset(keys.API_KEYS, key.key_id, "{")
    store.redis.hset(keys.API_KEYS, other.key_id, key.model_dump_json(exclude_none=True))
    ring = Keyring(place)
    ring.load()
    assert [bool(ring.find(each)) for each in (token, broken, moved)] == [True, False, False]
    assert caplog.text.count("cannot be read") == 2
    assert token not in caplog.text


async def test_an_unexpected_error_does_not_end_the_polling(place, caplog, monkeypatch):
    """A key that is revoked later must still be seen."""
    monkeypatch.setattr(keyring, "_POLL_S", 0.01)
    token, _key = place.add(tenant="acme")
    ring, num_loads = Keyring(place), 0
    load = ring.load

    def fail_first():
        nonlocal num_loads
        num_loads += 1
        if num_loads == 1:
            raise AttributeError("unexpected")
        load()

    ring.load = fail_first
    following = asyncio.create_task(ring.follow())
    async with asyncio.timeout(5):
        while num_loads < 3:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])
    assert ring.find(token) is not None
    assert "unexpected" in caplog.text


def test_a_server_that_lost_its_keys_lets_nobody_in(store, place):
    token, key = place.add(tenant="acme")
    ring = Keyring(place)
    ring.load()
    assert ring.find(token) == key
    store.redis.flushall()
    ring.load()
    assert ring.find(token) is None


def test_keys_stand_in_one_place(tmp_path):
    settings = GatewaySettings(gateway_keys_redis=True, gateway_keys_file=tmp_path / "keys.json")
    with pytest.raises(ConfigurationError, match="choose one key store"):
        serve(settings, lambda address: None)
    both = CliRunner().invoke(main, ["keys", "list", "--redis", "--file", str(tmp_path / "keys.json")])
    assert (both.exit_code, "cannot be used together" in both.output) == (1, True)
    variables = {
        "PAGEFLEET_GATEWAY_KEYS_REDIS": "1",
        "PAGEFLEET_GATEWAY_KEYS_FILE": str(tmp_path / "keys.json"),
    }
    neither = CliRunner(env=variables).invoke(main, ["keys", "add", "--tenant", "acme"])
    assert (neither.exit_code, "choose one key store with --redis or --file" in neither.output) == (1, True)


def test_the_gateways_setting_says_where(redis_server, store, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("PAGEFLEET_GATEWAY_KEYS_REDIS", "1")
    token = run("add", "--tenant", "acme").strip()
    assert token[3:11] in run("list")
    assert FleetSettings().url == redis_server.url
