"""Which rights the Redis user has: every command of a role is tried, in ways that change nothing.

The server looks at rights before it looks at keys. So the commands run on one key that is of another type
(a string that expires by itself): who may run them is told that the type is wrong.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import redis

from pagefleet.api.doctor.finding import Finding, Patient

_ARGUMENTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "set": ("1", "PX", 5000), "setex": (5, "1"), "exists": (), "get": (), "mget": (), "type": (), "pttl": (),
    "expire": (5,), "pexpire": (5000,),
    "hget": ("f",), "hmget": ("f",), "hgetall": (), "hset": ("f", "v"), "hsetnx": ("f", "v"),
    "hincrby": ("f", 1), "hlen": (), "hdel": ("f",), "hexists": ("f",),
    "lpush": ("v",), "rpush": ("v",), "llen": (), "lrange": (0, -1), "brpop": (0.01,),
    "sadd": ("m",), "srem": ("m",), "scard": (), "smembers": (), "sismember": ("m",),
    "zadd": (1, "m"), "zrem": ("m",), "zcard": (), "zrange": (0, -1), "zscore": ("m",),
    "zrevrange": (0, -1), "zrangebyscore": (0, 0), "zrevrangebyscore": (0, 0), "zremrangebyscore": (0, 0),
    "del": (),
}  # fmt: skip
"""What follows the key. The first makes it, the last removes it."""
_OTHERS: Final[Mapping[str, tuple[Any, ...]]] = {
    "time": ("TIME",),
    "info": ("INFO", "server"),
    "eval": ("EVAL", "return 1", 0),
    "evalsha": ("EVALSHA", "0" * 40, 0),
    "script|load": ("SCRIPT", "LOAD", "return 1"),
    "script|exists": ("SCRIPT", "EXISTS", "0" * 40),
}


class Role(NamedTuple):
    """``commands`` on the key ``probe``; ``keys`` that must be readable; ``channels`` to listen on."""

    probe: str
    commands: frozenset[str]
    keys: tuple[tuple[str, ...], ...]
    channels: tuple[str, ...]


_PRODUCER: Final = frozenset(
    [
        "time",
        "eval",
        "evalsha",
        "script|load",
        "script|exists",
        "exists",
        "get",
        "mget",
        "set",
        "setex",
        "del",
        "pexpire",
        "expire",
        "hget",
        "hmget",
        "hgetall",
        "hset",
        "hsetnx",
        "hincrby",
        "hlen",
        "lpush",
        "llen",
        "lrange",
        "rpush",
        "sadd",
        "srem",
        "scard",
        "smembers",
        "sismember",
        "zadd",
        "zrem",
        "zcard",
        "zrange",
        "zscore",
    ]
)
_WORKER: Final = _PRODUCER | frozenset(
    [
        "type",
        "pttl",
        "hdel",
        "hexists",
        "brpop",
        "zrevrange",
        "zrevrangebyscore",
        "zrangebyscore",
        "zremrangebyscore",
    ]
)
_MONITOR: Final = frozenset(
    [
        "time",
        "evalsha",
        "script|load",
        "script|exists",
        "exists",
        "mget",
        "get",
        "hmget",
        "hlen",
        "llen",
        "smembers",
        "sismember",
        "zcard",
        "zrange",
        "info",
        "zscore",
        "zrangebyscore",
        "zremrangebyscore",
        "scard",
        "expire",
        "lpush",
        "rpush",
        "brpop",
        "sadd",
        "srem",
        "zadd",
        "zrem",
        "del",
        "set",
    ]
)
_NOBODY: Final = "doctor"
"""Stands for a job, a model, a worker that is none."""
_KNOWN_BY_ALL: Final = (
    ("SMEMBERS", "pf:models"),
    ("GET", "pf:model:doctor"),
    ("ZRANGE", "pf:workers", "0", "0"),
    ("GET", "pf:lease:doctor"),
    ("ZCARD", "pf:open:doctor.interactive"),
    ("ZCARD", "pf:dead"),
    ("LLEN", "doctor.interactive"),
    ("LLEN", "doctor.batch"),
    ("SMEMBERS", "_kombu.binding.doctor"),
)
_JOBS: Final = (
    ("HGET", "pf:job:doctor", "state"),
    ("LLEN", "pf:log:doctor"),
    ("ZCARD", "pf:tenant:doctor"),
    ("GET", "celery-task-meta-doctor"),
)
_REPLIES: Final = ("pf:reply:doctor", "pf:job-events:doctor", "celery-task-meta-doctor")
_EVENTS: Final = "/{db}.celeryev/doctor"
_CONTROL: Final = "/{db}.celery.pidbox"
_CHANNEL_PATIENCE_S: Final = 1.0

ROLES: Final[Mapping[str, Role]] = {
    "worker": Role(
        "pf:client:doctor",
        _WORKER,
        (*_KNOWN_BY_ALL, *_JOBS, ("HLEN", "pf:unacked:doctor")),
        (*_REPLIES, _EVENTS, _CONTROL),
    ),
    "producer": Role("pf:client:doctor", _PRODUCER, (*_KNOWN_BY_ALL, *_JOBS), (*_REPLIES, _EVENTS)),
    "monitor": Role("celeryev.doctor", _MONITOR, _KNOWN_BY_ALL, (_EVENTS, _CONTROL)),
}


def rights(patient: Patient) -> Iterable[Finding]:
    """Of the role that is asked for; without one, which roles this user can fill."""
    roles = {patient.role: ROLES[patient.role]} if patient.role else ROLES
    lacking = {name: lacking_rights(patient, role) for name, role in roles.items()}
    able = [name for name, missing in lacking.items() if not missing]
    if able:
        yield Finding.ok("redis rights", f"enough for {' and '.join(f'a {name}' for name in able)}")
        return
    name, missing = min(lacking.items(), key=lambda item: len(item[1]))
    yield Finding.wrong(
        "redis rights",
        f"as a {name} this user lacks {', '.join(missing)}",
        "take its line from ops/redis/users.acl (ACL SETUSER, or the file and ACL LOAD)",
    )


def lacking_rights(patient: Patient, role: Role) -> list[str]:
    """In the words of an ACL: commands, keys and channels."""
    client, probe = patient.store.redis, f"{role.probe}-{secrets.token_hex(4)}"
    calls: list[tuple[str, tuple[Any, ...]]] = [
        (f"+{command}", (command.upper(), probe, *arguments))
        for command, arguments in _ARGUMENTS.items()
        if command in role.commands
    ]
    calls += [(f"+{name}", words) for name, words in _OTHERS.items() if name in role.commands]
    calls += [(f"~{words[1].replace(_NOBODY, '*')}", words) for words in role.keys]
    pipeline = client.pipeline(transaction=False)
    for _right, words in calls:
        pipeline.execute_command(*words)
    replies = pipeline.execute(raise_on_error=False)
    missing = [right for (right, _), reply in zip(calls, replies, strict=True) if _is_denied(reply)]
    return missing + _lacking_transactions(client, probe) + _lacking_channels(client, role.channels)


def _lacking_transactions(client: Any, key: str) -> list[str]:
    try:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.watch(key)
            pipeline.unwatch()
            pipeline.multi()
            pipeline.exists(key)
            pipeline.execute()
    except redis.exceptions.NoPermissionError:
        return ["+watch +unwatch +multi +exec"]
    return []


def _lacking_channels(client: Any, channels: Iterable[str]) -> list[str]:
    """To listen needs the same right to a channel as to publish there, and nobody hears of it."""
    db = client.connection_pool.connection_kwargs.get("db", 0)
    missing = []
    for channel in (name.format(db=db) for name in channels):
        with client.pubsub() as ear:
            ear.subscribe(channel)
            try:
                ear.get_message(timeout=_CHANNEL_PATIENCE_S)
            except redis.exceptions.NoPermissionError:
                missing.append(f"&{channel.replace(_NOBODY, '*')}")
    return missing


def _is_denied(reply: Any) -> bool:
    return isinstance(reply, redis.exceptions.NoPermissionError)
