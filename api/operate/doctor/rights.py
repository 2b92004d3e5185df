"""The rights of the Redis user: every command of a role is tried without changing anything.

The server checks rights before it checks the type of a key. So the commands run on one key of the wrong type,
a string that expires: a user with the right gets a type error.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import redis

from pagefleet.api.operate.doctor.finding import Finding, Target
from pagefleet.api.operate.doctor.roles import ROLES, SAMPLE_NAME, Role

_ARGUMENTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "set": ("1", "PX", 5000), "setex": (5, "1"), "exists": (), "get": (), "mget": (), "type": (), "pttl": (),
    "expire": (5,), "pexpire": (5000,),
    "hget": ("f",), "hmget": ("f",), "hgetall": (), "hset": ("f", "v"), "hsetnx": ("f", "v"),
    "hincrby": ("f", 1), "hlen": (), "hdel": ("f",), "hexists": ("f",),
    "lpush": ("v",), "rpush": ("v",), "rpop": (), "brpop": (0.01,), "blpop": (0.01,),
    "llen": (), "lrange": (0, -1),
    "sadd": ("m",), "srem": ("m",), "scard": (), "smembers": (), "sismember": ("m",),
    "zadd": (1, "m"), "zrem": ("m",), "zcard": (), "zrange": (0, -1), "zscore": ("m",),
    "zrevrange": (0, -1), "zrangebyscore": (0, 0), "zrevrangebyscore": (0, 0), "zremrangebyscore": (0, 0),
    "zremrangebyrank": (0, -1), "ltrim": (0, -1), "zcount": (0, 0), "incr": (),
    "del": (),
}  # fmt: skip
"""The arguments after the key. The first command creates the key, the last one removes it."""
_CREATING_COMMANDS: Final = frozenset(
    {"setex", "hset", "hsetnx", "hincrby", "lpush", "rpush", "sadd", "zadd", "incr"}
)
_OTHERS: Final[Mapping[str, tuple[Any, ...]]] = {
    "time": ("TIME",),
    "info": ("INFO", "server"),
    "eval": ("EVAL", "return 1", 0),
    "evalsha": ("EVALSHA", "0" * 40, 0),
    "script|load": ("SCRIPT", "LOAD", "return 1"),
    "script|exists": ("SCRIPT", "EXISTS", "0" * 40),
}
_CHANNEL_TIMEOUT_S: Final = 1.0


def rights(target: Target) -> Iterable[Finding]:
    """Check the rights of the role in the target; without a role, find the roles that this user can have."""
    roles = {target.role: ROLES[target.role]} if target.role else ROLES
    lacking = {name: lacking_rights(target, role) for name, role in roles.items()}
    able = [name for name, missing in lacking.items() if not missing]
    if able:
        yield Finding.ok("redis rights", f"sufficient for {' and '.join(f'a {name}' for name in able)}")
        return
    name, missing = min(lacking.items(), key=lambda item: len(item[1]))
    yield Finding.error(
        "redis rights",
        f"the user lacks rights of a {name}: {', '.join(missing)}",
        f"copy the line of the {name} from ops/redis/users.acl (ACL SETUSER, or edit the file and ACL LOAD)",
    )


def lacking_rights(target: Target, role: Role) -> list[str]:
    """Return the missing rights in the syntax of an ACL: commands, keys and channels."""
    client, probe = target.store.redis, f"{role.probe}-{secrets.token_hex(4)}"
    # Without the string, these commands would create a key.
    left_out = (
        _CREATING_COMMANDS if _is_denied(_reply(client, "SET", probe, *_ARGUMENTS["set"])) else frozenset()
    )
    calls: list[tuple[str, tuple[Any, ...]]] = [
        (f"+{command}", (command.upper(), probe, *arguments))
        for command, arguments in _ARGUMENTS.items()
        if command in role.commands - left_out
    ]
    calls += [(f"+{name}", words) for name, words in _OTHERS.items() if name in role.commands]
    calls += [(f"~{words[1].replace(SAMPLE_NAME, '*')}", words) for words in role.keys]
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
    """Subscribe to each channel: it needs the same right as publishing, without sending anything."""
    db = client.connection_pool.connection_kwargs.get("db", 0)
    missing = []
    for channel in (name.format(db=db) for name in channels):
        with client.pubsub() as subscription:
            subscription.subscribe(channel)
            try:
                subscription.get_message(timeout=_CHANNEL_TIMEOUT_S)
            except redis.exceptions.NoPermissionError:
                missing.append(f"&{channel.replace(SAMPLE_NAME, '*')}")
    return missing


def _reply(client: Any, *words: Any) -> Any:
    try:
        return client.execute_command(*words)
    except redis.ResponseError as error:
        return error


def _is_denied(reply: Any) -> bool:
    return isinstance(reply, redis.exceptions.NoPermissionError)
