"""Sweeper: finds open jobs that neither a queue nor a worker holds, and sends them again.

A producer can die between SUBMIT and ENQUEUE, a broker can forget a message, a worker can die between BRPOP
and kombu's write to the ledger. The job then stands in its open ledger and nothing would ever move it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from celery import Celery

from pagefleet.api import keys
from pagefleet.api.closing import JobCloser
from pagefleet.api.connections import send_message
from pagefleet.api.errors import RedisUnavailable
from pagefleet.api.job_store import JobStore, OpenJob
from pagefleet.api.messages import JobState
from pagefleet.api.status import num_queued
from pagefleet.workers.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_EVERY_S: Final = 5.0
_MAX_BACKOFF_S: Final = 600.0


@dataclass(slots=True)
class _Suspicion:
    """Since when a job looks stranded, and when it may be sent again at the earliest."""

    since: float
    send_at: float
    backoff_s: float


class Sweeper:
    """SWEEP (protocol line 13), in every worker, for its own model's queues; a lock lets one of them do it.

    A duplicate message is harmless: CLAIM drops it. So a job is sent again on suspicion, more rarely each
    time.

    Args:
        patience_s: how long a job must look stranded before it is sent again.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        queues: Sequence[str],
        patience_s: float,
        every_s: float = _EVERY_S,
    ) -> None:
        self._store = store
        self._app = app
        self._closer = JobCloser(store, app)
        self._queues = tuple(queues)
        self._patience_s = patience_s
        self._suspicions: dict[str, _Suspicion] = {}
        self._stopping = threading.Event()
        self._thread = LoopThread("sweeper", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def sweep(self) -> int:
        """One round over all queues: returns how many jobs were sent again."""
        num_sent = 0
        seen: set[str] = set()
        for queue in self._queues:
            jobs = self._store.open_jobs(queue)
            stranded = {job.job_id: job for job in self._stranded(queue, jobs)}
            seen |= stranded.keys()
            num_sent += sum(self._send_if_due(queue, job) for job in stranded.values())
        self._suspicions = {job_id: self._suspicions[job_id] for job_id in seen}
        return num_sent

    def _run(self) -> None:
        token = uuid.uuid4().hex
        while not self._stopping.wait(_EVERY_S):
            try:
                if self._store.try_lock(keys.sweep_lock(self._queues[0]), token, _EVERY_S * 0.9):
                    self.sweep()
            except RedisUnavailable as error:
                logger.debug("no sweeping without Redis: %s", error)

    def _stranded(self, queue: str, jobs: Sequence[OpenJob]) -> Iterable[OpenJob]:
        """Jobs that nobody seems to hold; those that have ended or are unknown are closed on the way."""
        is_empty = num_queued(self._store, queue) == 0
        overtaken_until = _newest_running(jobs)
        for job in jobs:
            if job.state is None:
                self._store.close(job.job_id, queue)
            elif job.state.is_final:
                self._closer.close(job.job_id)
            elif job.state is JobState.RUNNING:
                if not self._store.is_alive(job.owner):
                    yield job
            elif is_empty or job.enqueued_ms < overtaken_until.get(job.priority, 0.0):
                yield job

    def _send_if_due(self, queue: str, job: OpenJob) -> bool:
        now = time.monotonic()
        suspicion = self._suspicions.setdefault(
            job.job_id, _Suspicion(now, now + self._patience_s, self._patience_s)
        )
        if now < suspicion.send_at:
            return False
        send_message(self._app, job.job_id, queue, job.priority)
        suspicion.backoff_s = min(2 * suspicion.backoff_s, _MAX_BACKOFF_S)
        suspicion.send_at = now + suspicion.backoff_s
        logger.warning("job %s was held by nobody; it was sent again", job.job_id)
        return True


def _newest_running(jobs: Sequence[OpenJob]) -> dict[int, float]:
    """By priority, when the youngest running job was enqueued: a queued one before it was passed over."""
    newest: dict[int, float] = {}
    for job in jobs:
        if job.state is JobState.RUNNING:
            newest[job.priority] = max(newest.get(job.priority, 0.0), job.enqueued_ms)
    return newest
