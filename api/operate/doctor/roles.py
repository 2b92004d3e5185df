"""The rights that each user in ``ops/redis/users.acl`` needs; a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from pagefleet.api.contract import keys


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
    type pttl hdel hexists rpop brpop blpop ltrim zrevrange zrevrangebyscore zrangebyscore zremrangebyscore
    zcount incr
    """
)
_MONITOR: Final = _words(
    """
    time info evalsha script|load script|exists exists get mget set del expire hmget hlen lpush rpush
    llen brpop sadd srem scard smembers sismember zadd zrem zcard zrange zscore zrangebyscore zremrangebyscore
    """
)
SAMPLE_NAME: Final = "doctor"
"""An id of a job, model or worker that does not exist."""
_QUEUE: Final = keys.queue(SAMPLE_NAME, "interactive")
_KNOWN_BY_ALL: Final = (
    ("SMEMBERS", keys.MODELS),
    ("GET", keys.model(SAMPLE_NAME)),
    ("ZRANGE", keys.WORKERS, "0", "0"),
    ("GET", keys.lease(SAMPLE_NAME)),
    ("ZCARD", keys.open_jobs(SAMPLE_NAME)),
    ("ZCARD", keys.DEAD),
    ("LLEN", _QUEUE),
)
_QUEUES: Final = (
    ("SMEMBERS", f"_kombu.binding.{_QUEUE}"),
    *(("LLEN", name) for lane in keys.LANES for name in keys.queues(SAMPLE_NAME, lane)[1:]),
)
"""Workers also read the queues of the previous version."""
_JOBS: Final = (
    ("HGET", keys.job(SAMPLE_NAME), "state"),
    ("GET", keys.deleted(SAMPLE_NAME)),
    ("LLEN", keys.log(SAMPLE_NAME)),
    ("ZCARD", keys.tenant_jobs(SAMPLE_NAME, SAMPLE_NAME)),
    ("ZCARD", keys.stored_jobs(SAMPLE_NAME)),
    ("HGET", keys.stored_bytes(SAMPLE_NAME), "total"),
    ("HGET", keys.rate(SAMPLE_NAME), "requests"),
    ("ZCARD", keys.recent_jobs(SAMPLE_NAME)),
    ("LLEN", keys.questions(SAMPLE_NAME)),
    ("GET", keys.question(SAMPLE_NAME)),
    ("BLPOP", keys.answer(SAMPLE_NAME), "0.01"),
    ("GET", keys.result(SAMPLE_NAME)),
    ("GET", "celery-taskset-meta-doctor"),
)
_API_KEYS: Final = ("HGET", keys.API_KEYS, keys.API_KEYS_STAMP)
_UNACKED: Final = ("HLEN", keys.unacked(SAMPLE_NAME)["unacked_key"])
_CLIENT: Final = keys.client(SAMPLE_NAME)
_REPLIES: Final = (
    keys.reply_channel(SAMPLE_NAME),
    keys.job_channel(SAMPLE_NAME),
    keys.result(SAMPLE_NAME),
)
_EVENTS: Final = "/{db}.celeryev/doctor"
_CONTROL: Final = "/{db}.celery.pidbox"

ROLES: Final[Mapping[str, Role]] = {
    "worker": Role(
        _CLIENT,
        _WORKER,
        (*_KNOWN_BY_ALL, *_QUEUES, *_JOBS, _API_KEYS, _UNACKED),
        (*_REPLIES, _EVENTS, _CONTROL),
    ),
    "producer": Role(
        _CLIENT, _PRODUCER, (*_KNOWN_BY_ALL, _QUEUES[0], *_JOBS, _API_KEYS), (*_REPLIES, _EVENTS)
    ),
    "monitor": Role("celeryev.doctor", _MONITOR, _KNOWN_BY_ALL, (_EVENTS, _CONTROL)),
}
