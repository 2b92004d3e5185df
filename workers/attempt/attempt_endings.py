"""AttemptEndings: all the ways in which an attempt at a job ends. Each calls exactly one callback."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

from pagefleet.api.contract.errors import FleetError, ProtocolError
from pagefleet.api.contract.messages import ErrorInfo, JobState
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.threads.outage_retry import OutageRetry


class AttemptEndings:
    """Called in the publisher's thread, which no longer sends anything for the job.

    Args:
        abort: aborts a request in the engine.
        on_ended: called for each job that has reached a final state and must be closed.
        on_lost: called for each job that another worker owns or that Redis lost, with the reason.
        on_released: called for each released job; its message must be requeued.
        on_unreadable: called for each job whose hash or log cannot be read.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        retry: OutageRetry,
        metrics: Metrics,
        *,
        abort: Callable[[str], None],
        on_ended: Callable[[ActiveJob], None],
        on_lost: Callable[[ActiveJob, str], None],
        on_released: Callable[[ActiveJob], None],
        on_unreadable: Callable[[ActiveJob], None],
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._retry = retry
        self._metrics = metrics
        self._abort = abort
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._on_released = on_released
        self._on_unreadable = on_unreadable

    def complete(self, job: ActiveJob) -> None:
        """The last STEP has ended the job."""
        self._on_ended(job)

    def end(self, job: ActiveJob, state: JobState, reason: str, error: FleetError | None) -> None:
        """END or FAIL by the owner: abort the request in the engine first, then end the job in Redis."""
        self._abort(job.request_id)
        info = None if error is None else ErrorInfo.from_error(error)
        call = functools.partial(
            self._store.end, job.job_id, self._worker_id, job.epoch, state, reason=reason, error=info
        )
        try:
            verdict = self._retry(call)
        except ProtocolError:
            self._on_unreadable(job)
            return
        if verdict == "ended":
            self._on_ended(job)
        else:
            self.lose(job, verdict)

    def release(self, job: ActiveJob) -> None:
        """RELEASE (protocol line 8). The request must have been aborted, and its tokens sent."""
        try:
            verdict = self._release(job)
        except ProtocolError:
            self._on_unreadable(job)
            return
        if verdict == "released":
            self._on_released(job)
        else:
            self.lose(job, verdict)

    def release_at_shutdown(self, job: ActiveJob) -> None:
        """RELEASE without a callback: all messages are requeued together."""
        with contextlib.suppress(ProtocolError):
            self._release(job)

    def lose(self, job: ActiveJob, why: str) -> None:
        """The job no longer belongs to this worker."""
        self._metrics.on_fenced(why)
        self._abort(job.request_id)
        self._on_lost(job, why)

    def give_up_unreadable(self, job: ActiveJob) -> None:
        """The job's hash or log cannot be read."""
        self._abort(job.request_id)
        self._on_unreadable(job)

    def _release(self, job: ActiveJob) -> str:
        return self._retry(functools.partial(self._store.release, job.job_id, self._worker_id, job.epoch))
