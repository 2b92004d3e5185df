"""All names of Redis keys, pub/sub channels and queues.

The server has two kinds of names: pagefleet's own, with the prefix ``pf:``, and Celery's (queues and
``celery-task-meta-*``), which keep Celery's form so that any Celery service can read them.
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
"""Set: the canonical names of all models that have ever had a worker."""
WORKERS: Final = PREFIX + "workers"
"""Sorted set: worker id -> time of its last heartbeat, in milliseconds of the server's clock."""

DEAD: Final = PREFIX + "dead"
"""Sorted set: job id -> time at which it was given up, in milliseconds: the dead letters."""

UNREADABLE: Final = PREFIX + "unreadable"
"""List with an expiry: unreadable messages from queues, as JSON, the newest first. They may contain parts of
prompts, so monitors must not read them."""

PROBE: Final = PREFIX + "probe"
"""String: written to test whether the server accepts writes."""

GENERATE_TASK: Final = "pagefleet.generate"

QUEUE_PREFIX: Final = "pagefleet."
"""The prefix of all queues. A Redis user's key pattern with it matches only queues."""

_SLUG_SAFE = re.compile(r"[a-z0-9.-]")


def job(job_id: str) -> str:
    """Hash: the state of a job (its fields are listed in ``scripts/prelude.lua``)."""
    return f"{PREFIX}job:{job_id}"


def deleted(job_id: str) -> str:
    """String with an expiry: the tombstone of a deleted job, without content."""
    return f"{PREFIX}deleted:{job_id}"


def log(job_id: str) -> str:
    """List: the durable log of a job's tokens, one JSON entry for each flush of its worker."""
    return f"{PREFIX}log:{job_id}"


def result(job_id: str) -> str:
    """String with an expiry: a job's state or result as Celery's Redis backend stores it. Each write is
    published on a channel of the same name."""
    return f"celery-task-meta-{job_id}"


def open_jobs(queue: str) -> str:
    """Sorted set: job id -> time at which it was enqueued, in milliseconds: the jobs that are not closed yet.

    Each queue has its own, because SUBMIT counts the queue's depth on it.
    """
    return f"{PREFIX}open:{queue}"


def tenant_jobs(queue: str, tenant: str) -> str:
    """Sorted set: like :func:`open_jobs`, for one tenant's jobs in the queue."""
    return f"{PREFIX}tenant:{queue}:{tenant}"


def stored_jobs(tenant: str) -> str:
    """Sorted set: ``<job id> <bytes>`` -> time of the next check, in milliseconds: what a tenant stores."""
    return f"{PREFIX}stored:{tenant}"


def stored_bytes(tenant: str) -> str:
    """Hash: ``total`` is the sum of the bytes in :func:`stored_jobs`."""
    return f"{PREFIX}stored-bytes:{tenant}"


def recent_jobs(tenant: str | None) -> str:
    """Sorted set: job id -> time at which it was enqueued, in milliseconds: the newest 500 jobs of a tenant,
    or of requests without one, ended or not. Expires a day after the last submit."""
    return f"{PREFIX}recent:{tenant or ''}"


def suspects(worker_id: str) -> str:
    """Set: jobs whose first prefill the worker has started and not completed."""
    return f"{PREFIX}suspects:{worker_id}"


def client(client_id: str) -> str:
    """String with an expiry: exists while the client is alive."""
    return f"{PREFIX}client:{client_id}"


def model(name: str) -> str:
    """String: a model's card, as JSON."""
    return f"{PREFIX}model:{name}"


def lease(worker_id: str) -> str:
    """String with an expiry: exists while the worker counts as alive."""
    return f"{PREFIX}lease:{worker_id}"


def reap_lock(worker_id: str) -> str:
    """String with an expiry: held by the worker that returns a dead worker's messages to their queues."""
    return f"{PREFIX}reap:{worker_id}"


def sweep_lock(queue_name: str) -> str:
    """String with an expiry: held by the worker that currently sweeps the queue."""
    return f"{PREFIX}sweep:{queue_name}"


def reply_channel(client_id: str) -> str:
    """Channel: the events of all jobs of one client process."""
    return f"{PREFIX}reply:{client_id}"


def job_channel(job_id: str) -> str:
    """Channel: the events of one job, for readers that did not submit it."""
    return f"{PREFIX}job-events:{job_id}"


def job_of_channel(channel: str) -> str:
    """Return the job's id: the inverse of :func:`job_channel`."""
    return channel.removeprefix(job_channel(""))


def rate(key_id: str) -> str:
    """Hash: the requests and tokens that an API key of the gateway has left in the current minute."""
    return f"{PREFIX}rate:{key_id}"


def questions(model_name: str) -> str:
    """List with an expiry: ids of questions to a model's tokenizer, the newest first."""
    return f"{PREFIX}questions:{slug(model_name)}"


def question(question_id: str) -> str:
    """String with an expiry: a question, as JSON."""
    return f"{PREFIX}question:{question_id}"


def answer(question_id: str) -> str:
    """List with an expiry: one item, the answer as JSON."""
    return f"{PREFIX}answer:{question_id}"


API_KEYS: Final = PREFIX + "keys"
"""Hash: key id -> an API key of the gateway, its secret hashed; and :data:`API_KEYS_STAMP`."""
API_KEYS_STAMP: Final = "stamp"
"""The field of :data:`API_KEYS` whose value changes with each write."""


def slug(name: str) -> str:
    """Encode a name: each byte except a-z, 0-9, ``.`` and ``-`` becomes ``_`` and two hex digits."""
    return "".join(chr(byte) if _SLUG_SAFE.fullmatch(chr(byte)) else f"_{byte:02x}" for byte in name.encode())


def unslug(text: str) -> str:
    """Decode a name: the inverse of :func:`slug`."""
    plain = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return plain.decode()


def queue(model_name: str, lane: Lane) -> str:
    """Return the Celery queue of a model's lane."""
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
    """Return all queues that may have jobs of a lane, the current one first. Remove with the next version:
    producers before 0.1.0 used ``<slug>.<lane>``, so workers consume both (ops/decisions/0016).

    A model named ``pagefleet.<other>`` has one queue only: its old name is the queue of ``<other>``.
    """
    today, before = queue(model_name, lane), f"{slug(model_name)}.{lane}"
    return (today,) if before.startswith(QUEUE_PREFIX) else (today, before)


class QueueName(NamedTuple):
    """``model`` is the canonical name. ``lane`` is any text: the name may come from a foreign message."""

    model: str
    lane: str


def parse_queue(name: str) -> QueueName:
    """Parse a queue's name: the inverse of :func:`queue`. Also reads names of the previous version.

    Raises:
        ValueError: a name of the previous version whose bytes are not UTF-8.
    """
    model, _, lane = name.rpartition(".")
    if name.startswith(QUEUE_PREFIX):
        return QueueName(unquote(model.removeprefix(QUEUE_PREFIX)), lane)
    return QueueName(unslug(model), lane)


def unacked(worker_id: str) -> dict[str, str]:
    """Return kombu's options for a worker process's own ledger of unacknowledged messages."""
    return {
        "unacked_key": f"{PREFIX}unacked:{worker_id}",
        "unacked_index_key": f"{PREFIX}unacked-index:{worker_id}",
        "unacked_mutex_key": f"{PREFIX}unacked-mutex:{worker_id}",
    }
