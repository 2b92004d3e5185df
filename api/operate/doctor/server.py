"""Checks of the Redis server: version, durability, memory, connections, clock and latency."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import redis

from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.api.protocol.connection import redis_errors, safe_url

REDIS: Final = "redis"
"""The name of the check that the other checks of the server depend on."""
_OLDEST: Final = (7, 0)
_ASK_AS_MONITOR: Final = "check it as a monitor or an administrator: pagefleet doctor --redis-url URL"
_SKEW_WARNING_S, _SKEW_WRONG_S = 1.0, 60.0
_SLOW_MS: Final = 10.0


def reach(target: Target) -> Iterable[Finding]:
    """Whether the server answers and accepts our login."""
    try:
        with redis_errors(target.settings.url):
            target.store.redis.ping()
    except (RedisUnavailable, redis.ResponseError) as error:
        yield no_answer(error)
    else:
        yield Finding.ok(REDIS, f"{safe_url(target.settings.url)} answers")


def no_answer(error: Exception) -> Finding:
    """Shorten our error to the problem; the fix is on the next line of the report."""
    fix = "start Redis (`pagefleet up` starts one), or set REDIS_URL or --redis-url"
    if isinstance(error.__cause__, redis.AuthenticationError):
        fix = "correct the user or the password in REDIS_URL or PAGEFLEET_REDIS_PASSWORD_FILE"
    elif "certificate" in str(error):
        fix = "set PAGEFLEET_REDIS_CA to the file of the certificate authority"
    return Finding.error(REDIS, f"{error}".partition(";")[0].rstrip("."), fix)


def configuration(target: Target) -> Iterable[Finding]:
    """Version, durability, memory and connections, from INFO, which clients and workers may not call."""
    try:
        info = target.store.redis.info("everything")
    except redis.exceptions.NoPermissionError:
        yield version(_hello(target))
        yield Finding.skipped(
            "redis settings",
            "append-only file, eviction, memory, connections: this user is not allowed to call INFO",
            _ASK_AS_MONITOR,
        )
        return
    yield version(info)
    yield append_only_file(info, _config(target, "appendfsync"))
    yield eviction_policy(info)
    yield server_memory(info)
    yield server_connections(info)


def version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    text = str(info.get("valkey_version") or info.get("redis_version") or "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:2])
    if not numbers:
        return Finding.skipped("redis version", "the server does not report it", _ASK_AS_MONITOR)
    if numbers < _OLDEST:
        return Finding.error("redis version", f"{name} {text}", "use Redis 7.0 or newer, or Valkey")
    return Finding.ok("redis version", f"{name} {text}")


def append_only_file(info: Mapping[str, Any], fsync: str | None) -> Finding:
    check = "append-only file"
    if not int(info.get("aof_enabled", 0)):
        fix = "in redis.conf: appendonly yes, appendfsync everysec"
        return Finding.error(check, "off: jobs are lost when the server restarts", fix)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Finding.error(
            check, "on, but its last write failed", "check the disk of the server: it may be full or broken"
        )
    if fsync == "no":
        return Finding.warning(
            check, "on, but Redis never syncs it to disk", "in redis.conf: appendfsync everysec"
        )
    return Finding.ok(check, f"on{f', synced {fsync}' if fsync else ''}")


def eviction_policy(info: Mapping[str, Any]) -> Finding:
    check, fix = "eviction policy", "in redis.conf: maxmemory-policy noeviction"
    policy = str(info.get("maxmemory_policy", ""))
    if policy == "noeviction":
        return Finding.ok(check, policy)
    if int(info.get("maxmemory", 0)):
        return Finding.error(check, f"{policy}: the server deletes jobs when its memory is full", fix)
    return Finding.warning(check, f"{policy}: the server would delete jobs if maxmemory were set", fix)


def server_memory(info: Mapping[str, Any]) -> Finding:
    check, used, most = "redis memory", int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    whole = int(info.get("total_system_memory", 0))
    message = f"{used / 2**20:,.0f} of {(most or whole) / 2**20:,.0f} MiB used"
    if not most:
        return Finding.ok(check, f"{message}; maxmemory is not set")
    if used > 0.95 * most:
        return Finding.error(
            check,
            f"{message}: new jobs are refused (StorageFull)",
            "raise maxmemory, or lower PAGEFLEET_RESULT_TTL_S",
        )
    if used > 0.8 * most:
        return Finding.warning(check, message, "raise maxmemory, or lower PAGEFLEET_RESULT_TTL_S")
    return Finding.ok(check, message)


def server_connections(info: Mapping[str, Any]) -> Finding:
    used, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    message = f"{used:,} of {most:,} used"
    if used > 0.8 * most:
        return Finding.warning(
            "redis connections", message, "raise maxclients and the open files limit of the server"
        )
    return Finding.ok("redis connections", message)


def clock(target: Target) -> Iterable[Finding]:
    """Compare the server's clock with ours, in the middle of the fastest of five round trips."""
    best_s, skew_s = float("inf"), 0.0
    for _ in range(5):
        before, wall = time.perf_counter(), time.time()
        seconds, micros = target.store.redis.time()
        took_s = time.perf_counter() - before
        if took_s < best_s:
            best_s, skew_s = took_s, float(seconds) + float(micros) / 1e6 - (wall + took_s / 2)
    skew = f"the server's clock is {abs(skew_s) * 1000:,.1f} ms {'ahead' if skew_s > 0 else 'behind'}"
    fix = "synchronise both clocks (chrony, systemd-timesyncd); deadlines depend on them"
    if abs(skew_s) > _SKEW_WRONG_S:
        yield Finding.error("clock", skew, fix)
    elif abs(skew_s) > _SKEW_WARNING_S:
        yield Finding.warning("clock", skew, fix)
    else:
        yield Finding.ok("clock", skew)
    if best_s * 1000 > _SLOW_MS:
        yield Finding.warning(
            "round trip",
            f"{best_s * 1000:.1f} ms, which delays every token",
            "run Redis closer to the workers",
        )
    else:
        yield Finding.ok("round trip", f"{best_s * 1000:.2f} ms")


def _hello(target: Target) -> Mapping[str, Any]:
    """Return the version from HELLO, which every user may call."""
    with contextlib.suppress(redis.ResponseError):
        answer = target.store.redis.execute_command("HELLO")
        pairs = answer if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
        server = "valkey" if pairs.get("server") == "valkey" else "redis"
        return {f"{server}_version": pairs.get("version", "")}
    return {}


def _config(target: Target, name: str) -> str | None:
    with contextlib.suppress(redis.ResponseError):
        found: str | None = target.store.redis.config_get(name).get(name)
        return found
    return None
