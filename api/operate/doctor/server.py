"""Checks of the Redis server: what it is, whether it keeps what it is told, whether it has room."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import redis

from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.operate.doctor.finding import Finding, Patient
from pagefleet.api.protocol.connection import redis_errors, safe_url

REDIS: Final = "redis"
"""The check that the others of a server need."""
_OLDEST: Final = (7, 0)
_ASK_AS_MONITOR: Final = "run it once as a monitor or an administrator: pagefleet doctor --redis-url ..."
_SKEW_WARNING_S, _SKEW_WRONG_S = 1.0, 60.0
_SLOW_MS: Final = 10.0


def reach(patient: Patient) -> Iterable[Finding]:
    """Whether the server answers, and lets us in, at all."""
    try:
        with redis_errors(patient.settings.url):
            patient.store.redis.ping()
    except (RedisUnavailable, redis.ResponseError) as error:
        yield no_answer(error)
    else:
        yield Finding.ok(REDIS, f"{safe_url(patient.settings.url)} answers")


def no_answer(error: Exception) -> Finding:
    """The first half of our sentence: the line below it says what to do."""
    mend = "start it (`pagefleet up` has one of its own), or name another: REDIS_URL, --redis-url"
    if isinstance(error.__cause__, redis.AuthenticationError):
        mend = "correct the user or the password: REDIS_URL, PAGEFLEET_REDIS_PASSWORD_FILE"
    elif "certificate" in str(error):
        mend = "name the authority to trust: PAGEFLEET_REDIS_CA"
    return Finding.wrong(REDIS, f"{error}".partition(";")[0].rstrip("."), mend)


def configuration(patient: Patient) -> Iterable[Finding]:
    """Version, durability and room, from the server's INFO; a producer's user and a worker's may not ask."""
    try:
        info = patient.store.redis.info("everything")
    except redis.exceptions.NoPermissionError:
        yield version(_hello(patient))
        yield Finding.skipped(
            "redis settings",
            "AOF, eviction, memory, connections: this user may not ask (INFO)",
            _ASK_AS_MONITOR,
        )
        return
    yield version(info)
    yield append_only_file(info, _config(patient, "appendfsync"))
    yield eviction_policy(info)
    yield server_memory(info)
    yield server_connections(info)


def version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if not numbers:
        return Finding.skipped("redis version", "the server does not say it", _ASK_AS_MONITOR)
    if numbers < _OLDEST:
        return Finding.wrong("redis version", f"{name} {text}", "use Redis 7.0 or newer, or Valkey")
    return Finding.ok("redis version", f"{name} {text}")


def append_only_file(info: Mapping[str, Any], fsync: str | None) -> Finding:
    check = "append-only file"
    if not int(info.get("aof_enabled", 0)):
        mend = "appendonly yes, appendfsync everysec"
        return Finding.wrong(check, "off: a restart of the server forgets jobs", mend)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding.wrong(check, "on, but its last write failed", "look for a full or broken disk there")
    if fsync == "no":
        return Finding.warning(check, "on, never synced by Redis", "appendfsync everysec")
    return Finding.ok(check, f"on{f', synced {fsync}' if fsync else ''}")


def eviction_policy(info: Mapping[str, Any]) -> Finding:
    check, mend = "eviction policy", "maxmemory-policy noeviction"
    policy = str(info.get("maxmemory_policy", ""))
    if policy == "noeviction":
        return Finding.ok(check, policy)
    if int(info.get("maxmemory", 0)):
        return Finding.wrong(check, f"{policy}: a full server deletes jobs", mend)
    return Finding.warning(check, f"{policy}, without a limit so far", mend)


def server_memory(info: Mapping[str, Any]) -> Finding:
    check, used, most = "redis memory", int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    whole = int(info.get("total_system_memory", 0))
    seen = f"{used / 2**20:,.0f} MiB used of {(most or whole) / 2**20:,.0f}"
    if not most:
        return Finding.ok(check, f"{seen}, no maxmemory")
    if used > 0.95 * most:
        return Finding.wrong(check, f"{seen}: new jobs are refused (StorageFull)", "raise maxmemory")
    if used > 0.8 * most:
        return Finding.warning(check, seen, "raise maxmemory, or lower PAGEFLEET_RESULT_TTL_S")
    return Finding.ok(check, seen)


def server_connections(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    seen = f"{used:,} of {most:,}"
    if used > 0.8 * most:
        return Finding.warning("redis connections", seen, "raise maxclients (and the server's open files)")
    return Finding.ok("redis connections", seen)


def clock(patient: Patient) -> Iterable[Finding]:
    """The server's clock against ours, at the middle of the quickest of five round trips."""
    best_s, skew_s = float("inf"), 0.0
    for _ in range(5):
        before, wall = time.perf_counter(), time.time()
        seconds, micros = patient.store.redis.time()
        took_s = time.perf_counter() - before
        if took_s < best_s:
            best_s, skew_s = took_s, float(seconds) + float(micros) / 1e6 - (wall + took_s / 2)
    skew = f"the server is {abs(skew_s) * 1000:,.1f} ms {'ahead' if skew_s > 0 else 'behind'}"
    mend = "synchronise both clocks (chrony, systemd-timesyncd): times and deadlines are read on both"
    if abs(skew_s) > _SKEW_WRONG_S:
        yield Finding.wrong("clock", skew, mend)
    elif abs(skew_s) > _SKEW_WARNING_S:
        yield Finding.warning("clock", skew, mend)
    else:
        yield Finding.ok("clock", skew)
    if best_s * 1000 > _SLOW_MS:
        yield Finding.warning(
            "round trip",
            f"{best_s * 1000:.1f} ms",
            "each token waits for one: bring Redis nearer to the workers",
        )
    else:
        yield Finding.ok("round trip", f"{best_s * 1000:.2f} ms")


def _hello(patient: Patient) -> Mapping[str, Any]:
    """What every user is told."""
    with contextlib.suppress(redis.ResponseError):
        answer = patient.store.redis.execute_command("HELLO")
        pairs = answer if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
        server = "valkey" if pairs.get("server") == "valkey" else "redis"
        return {f"{server}_version": pairs.get("version", "")}
    return {}


def _config(patient: Patient, name: str) -> str | None:
    with contextlib.suppress(redis.ResponseError):
        found: str | None = patient.store.redis.config_get(name).get(name)
        return found
    return None
