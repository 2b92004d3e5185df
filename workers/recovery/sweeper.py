"""Sweeper: find open jobs without a message or a worker, past their deadline, or without a client.

A producer can die between SUBMIT and ENQUEUE, a broker can lose a message, and a worker can die between BRPOP
and kombu's write of the unacknowledged message. The job then stays in its open ledger until the sweeper sends
it again.
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
from pagefleet.api.protocol.operation_types import CancelVerdict
from pagefleet.api.protocol.replies import OpenJob

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S: Final = 2.0
_MAX_BACKOFF_S: Final = 600.0
_PAGE: Final = 1000


def _log(what: str, reason: str) -> None:
    logger.error("%s: %s", what, reason)


@dataclass(slots=True)
class _Resend:
    """When a stranded job may be sent again at the earliest, and how long to wait after that."""

    send_at: float
    backoff_s: float


class Sweeper:
    """SWEEP (protocol line 13), for the queues of this worker's model. A lock selects one of the workers.

    A duplicate message is harmless, because CLAIM drops it. So a job is sent again if it only looks stranded,
    with an increasing interval. A round reads the oldest jobs of a queue, which include the running ones, and
    the next page of the others.

    Args:
        grace_s: how long a waiting job must look stranded before it is sent again. Twice as long for a job
            whose owner died, because the reaper handles it first.
        on_fault: called with a description and a reason for each job that cannot be read.
        on_dead_letter: called for each job that becomes a dead letter here.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        queues: Sequence[str],
        grace_s: float,
        interval_s: float = SWEEP_INTERVAL_S,
        on_fault: Callable[[str, str], None] = _log,
        on_dead_letter: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_fault = on_fault
        self._on_dead_letter = on_dead_letter
        self._store = store
        self._app = app
        self._closer = JobCloser(store, app)
        self._queues = tuple(queues)
        self._grace_s = grace_s
        self._lock_s = interval_s * 1.5
        self._token = uuid.uuid4().hex
        self._resends: dict[str, _Resend] = {}
        self._without_client: set[str] = set()
        self._next_page = dict.fromkeys(queues, _PAGE)

    def sweep_if_elected(self) -> None:
        """Run one round, unless another worker holds the lock.

        The worker that holds the lock renews it in each round as long as it lives, because the state of the
        previous rounds is in its memory. If workers took turns, the grace period would start again each time.
        """
        lock = keys.sweep_lock(self._queues[0])
        self._store.unlock(lock, self._token)
        if self._store.try_lock(lock, self._token, self._lock_s):
            self.sweep()

    def sweep(self) -> int:
        """Run one round over all queues. Return how many jobs were sent again."""
        num_sent = 0
        resends, self._resends = self._resends, {}
        without_client, self._without_client = self._without_client, set()
        live_weights = self._live_weights()
        for queue in self._queues:
            jobs = self._page_of(queue)
            open_jobs = [job for job in jobs if not self._close_if_over(queue, job)]
            self._cancel_abandoned(queue, open_jobs, without_client)
            for job in open_jobs:
                has_worker = job.is_scheduled and job.waits_for in live_weights
                if job.is_due or has_worker:
                    num_sent += self._send_scheduled(queue, job, has_worker=has_worker)
            for job in self._stranded(queue, [job for job in open_jobs if not job.is_scheduled]):
                num_sent += self._resend_after_grace(queue, job, resends.get(job.job_id))
        return num_sent

    def _page_of(self, queue: str) -> list[OpenJob]:
        jobs = self._store.open_jobs(queue, 0, _PAGE)
        if len(jobs) < _PAGE:
            return jobs
        page = self._store.open_jobs(queue, self._next_page[queue], _PAGE)
        self._next_page[queue] = self._next_page[queue] + _PAGE if len(page) == _PAGE else _PAGE
        return jobs + page

    def _close_if_over(self, queue: str, job: OpenJob) -> bool:
        """Close a job that has ended, is gone or has expired. Return whether it was one."""
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
        """Close the job and return its final state."""
        record = self._closer.close(job_id, queue)
        if record is not None and record.queue != queue:
            self._on_fault("an ended job is closed", f"the hash of job {job_id} names a different queue")
        return None if record is None else record.state

    def _condemn(self, queue: str, job: OpenJob) -> None:
        """Remove a ledger entry without a hash; make a job whose hash cannot be read a dead letter."""
        if self._store.condemn(job.job_id, queue, only_missing=job.is_gone):
            if job.is_gone:
                self._on_fault(
                    "an open job is removed from its ledger", f"the data of job {job.job_id} is gone"
                )
            else:
                self._on_fault("a job becomes a dead letter", f"the data of job {job.job_id} cannot be read")
                self._on_dead_letter()
            with contextlib.suppress(ProtocolError):
                self._closer.close(job.job_id, queue)

    def _cancel_abandoned(self, queue: str, jobs: Sequence[OpenJob], seen_before: set[str]) -> None:
        """Cancel jobs that are not detached and whose clients are all gone, now and in the previous round.

        Right after a restart of Redis every client seems to be gone.
        """
        clients = sorted({client for job in jobs for client in job.clients})
        are_gone = dict(zip(clients, self._store.are_gone(clients), strict=True))
        for job in jobs:
            if job.clients and all(are_gone[client] for client in job.clients):
                if job.job_id in seen_before:
                    self._cancel(queue, job)
                self._without_client.add(job.job_id)

    def _cancel(self, queue: str, job: OpenJob) -> None:
        logger.info(
            "job %s is cancelled: it is not detached and its client is gone",
            job.job_id,
            extra={"job": job.job_id},
        )
        try:
            if self._store.cancel(job.job_id) is CancelVerdict.ENDED:
                self._closer.close(job.job_id)
        except ProtocolError:
            self._condemn(queue, job)

    def _stranded(self, queue: str, jobs: Sequence[OpenJob]) -> Iterable[OpenJob]:
        """Yield the jobs that seem to have neither a message nor a worker."""
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

    def _live_weights(self) -> set[tuple[str, str]]:
        """Return the fingerprints of the live workers. A job that waits for one of them is sent at once."""
        fingerprints = [each.fingerprint for each in self._store.workers() if not each.is_draining]
        return {(each.weights, each.tokenizer) for each in fingerprints if each is not None}

    def _send_scheduled(self, queue: str, job: OpenJob, *, has_worker: bool) -> bool:
        """Send a scheduled or refused job if it is due."""
        is_due = self._store.due(job.job_id, has_worker=has_worker)
        if is_due:
            send_message(self._app, job.job_id, queue, job.priority)
        return is_due

    def _resend_after_grace(self, queue: str, job: OpenJob, resend: _Resend | None) -> bool:
        now = time.monotonic()
        if resend is None:
            grace_s = self._grace_s * (2 if job.state is JobState.RUNNING else 1)
            resend = _Resend(now + grace_s, self._grace_s)
        self._resends[job.job_id] = resend
        if now < resend.send_at:
            return False
        send_message(self._app, job.job_id, queue, job.priority)
        resend.backoff_s = min(2 * resend.backoff_s, _MAX_BACKOFF_S)
        resend.send_at = now + resend.backoff_s
        logger.warning(
            "job %s had neither a message nor a worker; it was sent again",
            job.job_id,
            extra={"job": job.job_id},
        )
        return True


def _newest_running(jobs: Sequence[OpenJob]) -> dict[int, float]:
    """Return, by priority, when the newest running job was enqueued. Older waiting jobs were skipped."""
    newest: dict[int, float] = {}
    for job in jobs:
        if job.state is JobState.RUNNING:
            newest[job.priority] = max(newest.get(job.priority, 0.0), job.enqueued_ms)
    return newest
