"""Sweeper: finds open jobs that neither a queue nor a worker holds, and those whose time or client is gone.

A producer can die between SUBMIT and ENQUEUE, a broker can forget a message, a worker can die between BRPOP
and kombu's write to the ledger. The job then stands in its open ledger and nothing would ever move it.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from celery import Celery

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.sending import send_message
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operations import CancelVerdict
from pagefleet.api.protocol.replies import OpenJob

logger = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 2.0
_MAX_BACKOFF_S: Final = 600.0
_PAGE: Final = 1000


def _log(what: str, reason: str) -> None:
    logger.error("%s: %s", what, reason)


@dataclass(slots=True)
class _Suspicion:
    """Since when a job looks stranded, and when it may be sent again at the earliest."""

    send_at: float
    backoff_s: float


class Sweeper:
    """SWEEP (protocol line 13), in every worker, for its own model's queues; a lock lets one of them do it.

    A duplicate message is harmless: CLAIM drops it. So a job is sent again on suspicion, more rarely each
    time. A round looks at the oldest jobs of a queue, where the running ones are, and at the next page of
    the others.

    Args:
        patience_s: how long a waiting job must look stranded before it is sent again; one whose owner died
            twice as long, because the reaper sees to it first.
        count: told of each job that cannot be read.
        on_dead_letter: told of each job that is given up here.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        queues: Sequence[str],
        patience_s: float,
        every_s: float = SWEEP_EVERY_S,
        count: Callable[[str, str], None] = _log,
        on_dead_letter: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = count
        self._on_dead_letter = on_dead_letter
        self._store = store
        self._app = app
        self._closer = JobCloser(store, app)
        self._queues = tuple(queues)
        self._patience_s = patience_s
        self._lock_s = every_s * 1.5
        self._token = uuid.uuid4().hex
        self._suspicions: dict[str, _Suspicion] = {}
        self._without_client: set[str] = set()
        self._next_page = dict.fromkeys(queues, _PAGE)

    def sweep_if_first(self) -> None:
        """One round, unless another worker does them.

        Who has begun goes on, as long as it lives: what a job looked like in the round before is known to
        one worker only, and patience with it would begin anew with each that takes a turn.
        """
        lock = keys.sweep_lock(self._queues[0])
        self._store.unlock(lock, self._token)
        if self._store.try_lock(lock, self._token, self._lock_s):
            self.sweep()

    def sweep(self) -> int:
        """One round over all queues: returns how many jobs were sent again."""
        num_sent = 0
        suspicions, self._suspicions = self._suspicions, {}
        without_client, self._without_client = self._without_client, set()
        present = self._weights_present()
        for queue in self._queues:
            jobs = self._page_of(queue)
            alive = [job for job in jobs if not self._is_over(queue, job)]
            self._cancel_orphans(queue, alive, without_client)
            for job in alive:
                is_wanted = job.is_scheduled and job.waits_for in present
                if job.is_due or is_wanted:
                    num_sent += self._send_scheduled(queue, job, is_wanted=is_wanted)
            for job in self._stranded(queue, [job for job in alive if not job.is_scheduled]):
                num_sent += self._send_if_patient(queue, job, suspicions.get(job.job_id))
        return num_sent

    def _page_of(self, queue: str) -> list[OpenJob]:
        jobs = self._store.open_jobs(queue, 0, _PAGE)
        if len(jobs) < _PAGE:
            return jobs
        page = self._store.open_jobs(queue, self._next_page[queue], _PAGE)
        self._next_page[queue] = self._next_page[queue] + _PAGE if len(page) == _PAGE else _PAGE
        return jobs + page

    def _is_over(self, queue: str, job: OpenJob) -> bool:
        """Ended, forgotten, or waiting past its deadline or for too long: closed on the way."""
        try:
            if job.state is None:
                self._condemn(queue, job)
            elif job.state.is_final:
                self._close(queue, job.job_id)
            elif job.has_deadline and self._store.expire(job.job_id):
                if self._close(queue, job.job_id) is JobState.DEAD:
                    self._on_dead_letter()
            else:
                return False
        except ProtocolError:
            self._condemn(queue, job)
        return True

    def _close(self, queue: str, job_id: str) -> JobState | None:
        """How the job ended."""
        record = self._closer.close(job_id, queue)
        if record is not None and record.queue != queue:
            self._count("an ended job is closed", f"the hash of job {job_id} names another queue")
        return None if record is None else record.state

    def _condemn(self, queue: str, job: OpenJob) -> None:
        """A ledger's entry without a hash leaves it; one whose hash cannot be read becomes a dead letter."""
        if self._store.condemn(job.job_id, queue, only_missing=job.is_gone):
            what = "is gone" if job.is_gone else "cannot be read"
            self._count("an open job is condemned", f"what is stored of job {job.job_id} {what}")
            if not job.is_gone:
                self._on_dead_letter()
            with contextlib.suppress(ProtocolError):
                self._closer.close(job.job_id, queue)

    def _cancel_orphans(self, queue: str, jobs: Sequence[OpenJob], seen_before: set[str]) -> None:
        """Jobs that are not detached and whose clients are all gone, now and in the round before: after a
        restart of the server every client seems gone for a moment."""
        clients = sorted({client for job in jobs for client in job.clients})
        are_gone = dict(zip(clients, self._store.are_gone(clients), strict=True))
        for job in jobs:
            if job.clients and all(are_gone[client] for client in job.clients):
                if job.job_id in seen_before:
                    self._cancel(queue, job)
                self._without_client.add(job.job_id)

    def _cancel(self, queue: str, job: OpenJob) -> None:
        logger.info(
            "job %s is cancelled: its client is gone and it is not detached",
            job.job_id,
            extra={"job": job.job_id},
        )
        try:
            if self._store.cancel(job.job_id) is CancelVerdict.ENDED:
                self._closer.close(job.job_id)
        except ProtocolError:
            self._condemn(queue, job)

    def _stranded(self, queue: str, jobs: Sequence[OpenJob]) -> Iterable[OpenJob]:
        """Jobs that nobody seems to hold."""
        is_empty = num_queued(self._store, queue) == 0
        overtaken_until = _newest_running(jobs)
        owners = {job.owner for job in jobs if job.state is JobState.RUNNING}
        dead = {owner for owner in owners if not self._store.is_alive(owner)}
        for job in jobs:
            if job.state is JobState.RUNNING:
                if job.owner in dead:
                    yield job
            elif is_empty or job.enqueued_ms < overtaken_until.get(job.priority, 0.0):
                yield job

    def _weights_present(self) -> set[tuple[str, str]]:
        """Of the workers that live: a job that waits for them need not wait out its time."""
        made_with = [each.fingerprint for each in self._store.workers() if not each.is_draining]
        return {(each.weights, each.tokenizer) for each in made_with if each is not None}

    def _send_scheduled(self, queue: str, job: OpenJob, *, is_wanted: bool) -> bool:
        """A job that was to begin later, or that was refused: its time has come."""
        is_due = self._store.due(job.job_id, is_wanted=is_wanted)
        if is_due:
            send_message(self._app, job.job_id, queue, job.priority)
        return is_due

    def _send_if_patient(self, queue: str, job: OpenJob, suspicion: _Suspicion | None) -> bool:
        now = time.monotonic()
        if suspicion is None:
            patience_s = self._patience_s * (2 if job.state is JobState.RUNNING else 1)
            suspicion = _Suspicion(now + patience_s, self._patience_s)
        self._suspicions[job.job_id] = suspicion
        if now < suspicion.send_at:
            return False
        send_message(self._app, job.job_id, queue, job.priority)
        suspicion.backoff_s = min(2 * suspicion.backoff_s, _MAX_BACKOFF_S)
        suspicion.send_at = now + suspicion.backoff_s
        logger.warning("job %s was held by nobody; it was sent again", job.job_id, extra={"job": job.job_id})
        return True


def _newest_running(jobs: Sequence[OpenJob]) -> dict[int, float]:
    """By priority, when the youngest running job was enqueued: a queued one before it was passed over."""
    newest: dict[int, float] = {}
    for job in jobs:
        if job.state is JobState.RUNNING:
            newest[job.priority] = max(newest.get(job.priority, 0.0), job.enqueued_ms)
    return newest
