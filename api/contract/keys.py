"""Every Redis key, pub/sub channel and queue name, and nothing else.

The server holds two kinds of names: ours, under the prefix ``pf:``, and Celery's own (queues and
``celery-task-meta-*``), which keep Celery's spelling so that any Celery service can read them.
"""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from pagefleet.api.contract.errors import InvalidRequest

Lane = Literal["interactive", "batch"]
LANES: Final[tuple[Lane, ...]] = ("interactive", "batch")

PREFIX: Final = "pf:"
MODELS: Final = PREFIX + "models"
"""Set of the canonical names of all models that ever had a worker."""
WORKERS: Final = PREFIX + "workers"
"""Sorted set worker id -> milliseconds of its last beat (Redis clock)."""

DEAD: Final = PREFIX + "dead"
"""Sorted set job id -> milliseconds at which it was given up: the dead letters."""

UNREADABLE: Final = PREFIX + "unreadable"
"""List of JSON objects with an expiry: what came over a queue and could not be read, the newest first. It may
hold parts of prompts: no monitor reads it."""

PROBE: Final = PREFIX + "probe"
"""Written to see whether the server takes anything new."""

GENERATE_TASK: Final = "pagefleet.generate"

QUEUE_PREFIX: Final = "pagefleet."
"""What every queue begins with: a Redis user's key pattern for queues then matches no other key."""

_SLUG_SAFE = re.compile(r"[a-z0-9.-]")


def job(job_id: str) -> str:
    """Hash: the state of a job (its fields are listed in ``scripts/prelude.lua``)."""
    return f"{PREFIX}job:{job_id}"


def deleted(job_id: str) -> str:
    """String with an expiry: the tombstone of a job that was deleted, without any content."""
    return f"{PREFIX}deleted:{job_id}"


def log(job_id: str) -> str:
    """List: the durable log of a job, one JSON entry for each flush of its worker."""
    return f"{PREFIX}log:{job_id}"


def result(job_id: str) -> str:
    """String with an expiry: the state or result of a job as Celery's Redis backend stores it. Each write is
    published on a channel of the same name."""
    return f"celery-task-meta-{job_id}"


def open_jobs(queue: str) -> str:
    """Sorted set job id -> milliseconds at which it was enqueued: the ledger of jobs not yet closed.

    One ledger for each queue: depth is counted on it, and a single one would be a hot spot.
    """
    return f"{PREFIX}open:{queue}"


def tenant_jobs(queue: str, tenant: str) -> str:
    """Sorted set like :func:`open_jobs`, for one tenant's jobs in that queue."""
    return f"{PREFIX}tenant:{queue}:{tenant}"


def stored_jobs(tenant: str) -> str:
    """Sorted set ``<job id> <bytes>`` -> milliseconds at which they are looked at again: what
    a tenant has stored."""
    return f"{PREFIX}stored:{tenant}"


def stored_bytes(tenant: str) -> str:
    """Hash: ``total`` is the sum of :func:`stored_jobs`."""
    return f"{PREFIX}stored-bytes:{tenant}"


def recent_jobs(tenant: str | None) -> str:
    """Sorted set job id -> milliseconds at which it was enqueued: the newest 500 jobs of a tenant, or of
    nobody, ended or not; gone a day after the last of them."""
    return f"{PREFIX}recent:{tenant or ''}"


def suspects(worker_id: str) -> str:
    """Set: the jobs whose first prefill that worker has begun."""
    return f"{PREFIX}suspects:{worker_id}"


def client(client_id: str) -> str:
    """String with an expiry: exists for as long as that client lives."""
    return f"{PREFIX}client:{client_id}"


def model(name: str) -> str:
    """String: the card of a model, as JSON."""
    return f"{PREFIX}model:{name}"


def lease(worker_id: str) -> str:
    """String with an expiry: exists for as long as the worker is trusted to be alive."""
    return f"{PREFIX}lease:{worker_id}"


def reap_lock(worker_id: str) -> str:
    """String with an expiry: held by the survivor that puts a dead worker's messages back."""
    return f"{PREFIX}reap:{worker_id}"


def sweep_lock(queue_name: str) -> str:
    """String with an expiry: held by the worker that sweeps a model's queues this time."""
    return f"{PREFIX}sweep:{queue_name}"


def reply_channel(client_id: str) -> str:
    """Channel on which one client process hears of all its jobs."""
    return f"{PREFIX}reply:{client_id}"


def job_channel(job_id: str) -> str:
    """Channel for readers that attached to a job they did not submit."""
    return f"{PREFIX}job-events:{job_id}"


def job_of_channel(channel: str) -> str:
    """The inverse of :func:`job_channel`."""
    return channel.removeprefix(job_channel(""))


def rate(key_id: str) -> str:
    """Hash: what an API key of the gateway has left of its requests and tokens of a minute."""
    return f"{PREFIX}rate:{key_id}"


def questions(model_name: str) -> str:
    """List: the ids of questions to the tokenizer of a model, the newest first; expires when nobody asks."""
    return f"{PREFIX}questions:{slug(model_name)}"


def question(question_id: str) -> str:
    """String with an expiry: what is asked, as JSON."""
    return f"{PREFIX}question:{question_id}"


def answer(question_id: str) -> str:
    """List with an expiry: its one item is the answer, as JSON."""
    return f"{PREFIX}answer:{question_id}"


API_KEYS: Final = PREFIX + "keys"
"""Hash key id -> an API key of the gateway, of the key itself a hash only; and :data:`API_KEYS_STAMP`."""
API_KEYS_STAMP: Final = "stamp"
"""The field of :data:`API_KEYS` that is another one after each change."""


def slug(name: str) -> str:
    """Reversible spelling of a name in lower case: every other byte becomes ``_`` + two hex digits."""
    return "".join(chr(byte) if _SLUG_SAFE.fullmatch(chr(byte)) else f"_{byte:02x}" for byte in name.encode())


def unslug(text: str) -> str:
    """The inverse of :func:`slug`."""
    plain = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return plain.decode()


def queue(model_name: str, lane: Lane) -> str:
    """The Celery queue that serves a model's lane."""
    return f"{QUEUE_PREFIX}{quote(model_name, safe='')}.{lane}"


def queue_name(model: str, lane: Lane = "interactive") -> str:
    """Return the Celery queue of a model's lane, to send tasks to without a client.

    Args:
        model: the model's name, not an alias.

    Raises:
        InvalidRequest: the lane does not exist.
    """
    if lane not in LANES:
        raise InvalidRequest(f"lane: {lane!r} does not exist; use one of {', '.join(LANES)}.", param="lane")
    return queue(model, lane)


def queues(model_name: str, lane: Lane) -> tuple[str, ...]:
    """Every name under which a lane may have jobs, today's first. Remove with the next version: producers
    before 0.1.0 wrote ``<slug>.<lane>``, and workers consume both (ops/decisions/0016).

    A model that is called ``pagefleet.<other>`` has one name only: its old one is the other's queue.
    """
    today, before = queue(model_name, lane), f"{slug(model_name)}.{lane}"
    return (today,) if before.startswith(QUEUE_PREFIX) else (today, before)


class QueueName(NamedTuple):
    """``model`` is the canonical name; ``lane`` is text, because the name may come from anybody."""

    model: str
    lane: str


def parse_queue(name: str) -> QueueName:
    """The inverse of :func:`queue`; also reads names of the previous version.

    Raises:
        ValueError: a name of the previous version whose bytes are not UTF-8.
    """
    model, _, lane = name.rpartition(".")
    if name.startswith(QUEUE_PREFIX):
        return QueueName(unquote(model.removeprefix(QUEUE_PREFIX)), lane)
    return QueueName(unslug(model), lane)


def unacked(worker_id: str) -> dict[str, str]:
    """kombu's options that give one worker process its own ledger of unacknowledged messages."""
    return {
        "unacked_key": f"{PREFIX}unacked:{worker_id}",
        "unacked_index_key": f"{PREFIX}unacked-index:{worker_id}",
        "unacked_mutex_key": f"{PREFIX}unacked-mutex:{worker_id}",
    }
