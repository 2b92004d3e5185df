"""The rights that each user in ``ops/redis/users.acl`` needs; a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Role(NamedTuple):
    """The rights of one kind of user.

    Args:
        probe: a key on which the commands are tried.
        commands: the commands that it runs.
        keys: commands that read each family of keys.
        channels: the channels that it subscribes to.
    """

    probe: str
    commands: frozenset[str]
    keys: tuple[tuple[str, ...], ...]
    channels: tuple[str, ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRODUCER: Final = _words(
    """
    time eval evalsha script|load script|exists exists get mget set setex del pexpire expire
    hget hmget hgetall hset hsetnx hincrby hlen lpush llen lrange rpush
    sadd srem scard smembers sismember zadd zrem zcard zrange zscore zremrangebyrank
    """
)
_WORKER: Final = _PRODUCER | _words(
    """
    type pttl hdel hexists brpop blpop ltrim zrevrange zrevrangebyscore zrangebyscore zremrangebyscore
    zcount incr
    """
)
_MONITOR: Final = _words(
    """
    time info evalsha script|load script|exists exists get mget set del expire hmget hlen lpush rpush
    llen brpop sadd srem scard smembers sismember zadd zrem zcard zrange zscore zrangebyscore zremrangebyscore
    """
)
PLACEHOLDER: Final = "doctor"
"""An id of a job, model or worker that does not exist."""
_KNOWN_BY_ALL: Final = (
    ("SMEMBERS", "pf:models"),
    ("GET", "pf:model:doctor"),
    ("ZRANGE", "pf:workers", "0", "0"),
    ("GET", "pf:lease:doctor"),
    ("ZCARD", "pf:open:doctor"),
    ("ZCARD", "pf:dead"),
    ("LLEN", "pagefleet.doctor"),
)
_QUEUES: Final = (
    ("SMEMBERS", "_kombu.binding.pagefleet.doctor"),
    # The queue names of the previous version: keys.queues.
    ("LLEN", "doctor.interactive"),
    ("LLEN", "doctor.batch"),
)
_JOBS: Final = (
    ("HGET", "pf:job:doctor", "state"),
    ("GET", "pf:deleted:doctor"),
    ("LLEN", "pf:log:doctor"),
    ("ZCARD", "pf:tenant:doctor"),
    ("ZCARD", "pf:stored:doctor"),
    ("HGET", "pf:stored-bytes:doctor", "total"),
    ("HGET", "pf:rate:doctor", "requests"),
    ("ZCARD", "pf:recent:doctor"),
    ("LLEN", "pf:questions:doctor"),
    ("GET", "pf:question:doctor"),
    ("BLPOP", "pf:answer:doctor", "0.01"),
    ("GET", "celery-task-meta-doctor"),
    ("GET", "celery-taskset-meta-doctor"),
)
_API_KEYS: Final = ("HGET", "pf:keys", "stamp")
_REPLIES: Final = ("pf:reply:doctor", "pf:job-events:doctor", "celery-task-meta-doctor")
_EVENTS: Final = "/{db}.celeryev/doctor"
_CONTROL: Final = "/{db}.celery.pidbox"

ROLES: Final[Mapping[str, Role]] = {
    "worker": Role(
        "pf:client:doctor",
        _WORKER,
        (*_KNOWN_BY_ALL, *_QUEUES, *_JOBS, _API_KEYS, ("HLEN", "pf:unacked:doctor")),
        (*_REPLIES, _EVENTS, _CONTROL),
    ),
    "producer": Role(
        "pf:client:doctor", _PRODUCER, (*_KNOWN_BY_ALL, _QUEUES[0], *_JOBS, _API_KEYS), (*_REPLIES, _EVENTS)
    ),
    "monitor": Role("celeryev.doctor", _MONITOR, _KNOWN_BY_ALL, (_EVENTS, _CONTROL)),
}
