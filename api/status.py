"""The state of the whole fleet as one value: what ``pagefleet status`` shows."""

from __future__ import annotations

import contextlib
from typing import Final

import redis

from pagefleet.api import keys
from pagefleet.api.celery_app import PRIORITY_STEPS
from pagefleet.api.connection import redis_errors
from pagefleet.api.fleet import FleetStatus, QueueStatus, RefusedJob, RunningJob
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import JobState

_MAX_RUNNING_LISTED: Final = 100


def read_status(store: JobStore) -> FleetStatus:
    """Queues, workers, models and running jobs, as they are now."""
    cards = store.cards()
    queues: list[QueueStatus] = []
    running: list[RunningJob] = []
    refused: list[RefusedJob] = []
    hidden: list[str] = []
    for card in cards:
        for lane in keys.LANES:
            name = keys.queue(card.name, lane)
            with redis_errors(store.settings.url):
                num_open = store.redis.zcard(keys.open_jobs(name))
                job_ids = store.redis.zrange(keys.open_jobs(name), 0, _MAX_RUNNING_LISTED - 1)
            queues.append(QueueStatus(name, card.name, lane, num_queued(store, name), num_open))
            if not _may_read(store, job_ids):
                hidden += job_ids
                continue
            jobs = _jobs(store, card.name, job_ids)
            running += [job for job in jobs if isinstance(job, RunningJob)]
            refused += [job for job in jobs if isinstance(job, RefusedJob)]
    return FleetStatus(cards, store.workers(), queues, running, refused, len(store.dead_letters()), hidden)


def num_queued(store: JobStore, queue_name: str) -> int:
    """Messages that wait in the broker for this queue, over all priorities."""
    with redis_errors(store.settings.url):
        return sum(int(store.redis.llen(key)) for key in _priority_lists(queue_name))


def _priority_lists(queue_name: str) -> list[str]:
    """kombu's lists behind one queue: the first priority keeps the plain name."""
    return [queue_name if step == 0 else f"{queue_name}\x06\x16{step}" for step in PRIORITY_STEPS]


def _may_read(store: JobStore, job_ids: list[str]) -> bool:
    """A monitor's user may not: a job's hash holds its prompt. One question, not one for each job: the server
    keeps a list of what it denied."""
    with redis_errors(store.settings.url):
        try:
            if job_ids:
                store.redis.hmget(keys.job(job_ids[0]), "state")
        except redis.exceptions.NoPermissionError:
            return False
        except redis.exceptions.ResponseError:
            pass  # that one job cannot be read by anyone
    return True


def _jobs(store: JobStore, model: str, job_ids: list[str]) -> list[RunningJob | RefusedJob]:
    with redis_errors(store.settings.url):
        seconds, _micros = store.redis.time()
        pipeline = store.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(keys.job(job_id), "state", "owner", "n:0", "attempts", "claimed_at", "refused")
        # One job that cannot be read must not hide the others.
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
