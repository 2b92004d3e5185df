"""read_status: the state of the fleet, for ``pagefleet status``; and figures of the queues for monitors."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from typing import Final

import redis

from pagefleet.api.broker.celery_app import PRIORITY_STEPS, broker_priority
from pagefleet.api.contract import keys
from pagefleet.api.contract.fleet_status import FleetStatus, QueueStatus, RefusedJob, RunningJob
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_store import JobStore

_MAX_RUNNING_LISTED: Final = 100
_PAGE: Final = 200
PRIORITIES: Final = PRIORITY_STEPS


def read_status(store: JobStore) -> FleetStatus:
    """Return the queues, workers, models, running and refused jobs of this moment."""
    cards = store.cards()
    queues: list[QueueStatus] = []
    running: list[RunningJob] = []
    refused: list[RefusedJob] = []
    unreadable: list[str] = []
    for card in cards:
        for lane in keys.LANES:
            name = keys.queue(card.name, lane)
            job_ids = _oldest_open(store, card.name, lane)
            depth, num_jobs = num_queued(store, name), num_open(store, card.name, lane)
            queues.append(QueueStatus(name, card.name, lane, depth, num_jobs))
            if not _may_read(store, job_ids):
                unreadable += job_ids
                continue
            jobs = _jobs(store, card.name, job_ids)
            running += [job for job in jobs if isinstance(job, RunningJob)]
            refused += [job for job in jobs if isinstance(job, RefusedJob)]
    num_dead = len(store.dead_letters())
    return FleetStatus(cards, store.workers(), queues, running, refused, num_dead, unreadable)


def num_queued(store: JobStore, queue_name: str) -> int:
    """Return the number of messages in the broker for this queue, over all priorities."""
    return sum(num_by_priority(store, queue_name).values())


def num_by_priority(store: JobStore, queue_name: str) -> dict[int, int]:
    """Return the number of messages in the broker for this queue, by priority (9 is the most urgent)."""
    with redis_errors(store.settings.url):
        pipeline = store.redis.pipeline(transaction=False)
        for priority in PRIORITIES:
            pipeline.llen(_priority_list(queue_name, broker_priority(priority)))
        return dict(zip(PRIORITIES, map(int, pipeline.execute()), strict=True))


def num_open(store: JobStore, model: str, lane: Lane) -> int:
    """Return the number of jobs of this lane that are not closed."""
    with redis_errors(store.settings.url):
        return sum(int(store.redis.zcard(keys.open_jobs(name))) for name in keys.queues(model, lane))


def oldest_waiting_s(store: JobStore, model: str, lane: Lane, held: Container[str]) -> float:
    """Return how long, in seconds by the server's clock, the oldest waiting job has been queued; 0 if none.

    Reads only the ledgers, which a monitor's user may read. The oldest jobs of a queue are usually running,
    so the ledger is read page by page until a waiting one is found.

    Args:
        held: the ids of the jobs that live workers hold.
    """
    return max(_oldest_waiting_s(store, name, held) for name in keys.queues(model, lane))


def _oldest_waiting_s(store: JobStore, queue_name: str, held: Container[str]) -> float:
    first = 0
    with redis_errors(store.settings.url):
        seconds, micros = store.redis.time()
        while page := store.redis.zrange(
            keys.open_jobs(queue_name), first, first + _PAGE - 1, withscores=True
        ):
            for job_id, enqueued_ms in page:
                if job_id not in held:
                    return max(0.0, float(seconds) + float(micros) / 1e6 - float(enqueued_ms) / 1000)
            first += _PAGE
    return 0.0


def _oldest_open(store: JobStore, model: str, lane: Lane) -> list[str]:
    with redis_errors(store.settings.url):
        pages = [
            store.redis.zrange(keys.open_jobs(name), 0, _MAX_RUNNING_LISTED - 1)
            for name in keys.queues(model, lane)
        ]
    return [job_id for page in pages for job_id in page][:_MAX_RUNNING_LISTED]


def _priority_list(queue_name: str, step: int) -> str:
    """Return kombu's list of one priority step of a queue; step 0 has the queue's name."""
    return queue_name if step == 0 else f"{queue_name}\x06\x16{step}"


def _may_read(store: JobStore, job_ids: list[str]) -> bool:
    """Return whether this user may read jobs. A monitor's user may not, because a job's hash has its prompt.

    Only one job is tried, because the server logs every denied command.
    """
    with redis_errors(store.settings.url):
        try:
            if job_ids:
                store.redis.hmget(keys.job(job_ids[0]), "state")
        except redis.exceptions.NoPermissionError:
            return False
        except redis.exceptions.ResponseError:
            pass  # The user may read jobs, but this one is broken.
    return True


def _jobs(store: JobStore, model: str, job_ids: list[str]) -> list[RunningJob | RefusedJob]:
    with redis_errors(store.settings.url):
        seconds, _micros = store.redis.time()
        pipeline = store.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), "state", "owner", "n:0", "attempts", "claimed_at", "refused")
        # One broken job must not hide the others.
        rows = pipeline.execute(raise_on_error=False) if job_ids else []
    jobs: list[RunningJob | RefusedJob] = []
    for job_id, row in zip(job_ids, rows, strict=True):
        with contextlib.suppress(ValueError, TypeError):
            state, owner, n, attempts, claimed_at, reason = row
            if state == JobState.RUNNING:
                running_s = seconds - int(claimed_at) / 1000
                jobs.append(RunningJob(job_id, model, owner or "", int(n or 0), int(attempts), running_s))
            elif state == JobState.QUEUED and reason:
                jobs.append(RefusedJob(job_id, model, reason))
    return jobs
