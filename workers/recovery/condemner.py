"""Condemner: jobs of which the server holds what nobody can read, or nothing any more."""

from __future__ import annotations

import contextlib
import functools
import re

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.observe.metrics import Metrics
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.threads.outage_retry import OutageRetry


class Condemner:
    """Ends such jobs as dead letters, settles their messages and counts each once."""

    def __init__(
        self,
        store: JobStore,
        closer: JobCloser,
        retry: OutageRetry,
        *,
        worker_id: str,
        gate: MessageGate,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._closer = closer
        self._retry = retry
        self._worker_id = worker_id
        self._gate = gate
        self._metrics = metrics

    def condemn(self, message: JobMessage) -> None:
        """The job's hash or log cannot be read."""
        queue = message.queue
        if self._retry(functools.partial(self._store.condemn, message.job_id, queue)):
            self._gate.count("a job is condemned", f"what is stored of job {message.job_id} cannot be read")
            self._metrics.on_dead_letter()
            with contextlib.suppress(ProtocolError):
                self._retry(functools.partial(self._closer.close, message.job_id, queue))
        message.drop()

    def missing(self, message: JobMessage) -> None:
        """The server knows no such job, or none any more."""
        queue = message.queue
        if self._retry(functools.partial(self._store.condemn, message.job_id, queue, only_missing=True)):
            self._gate.count("a job is condemned", f"what is stored of job {message.job_id} is gone")
        message.drop()

    def was_overwritten(self, job: ActiveJob) -> bool:
        """Whether somebody else than a claim ended this attempt, by another epoch in the job's hash.

        One that is a number is counted here; any other the next claim finds unreadable.
        """
        epoch = self._foreign_epoch(job)
        if epoch is not None and re.fullmatch(r"-?\d{1,18}", epoch):
            self._gate.count("an attempt ends", f"the epoch of job {job.job_id} was changed from outside")
        return epoch is not None

    def _foreign_epoch(self, job: ActiveJob) -> str | None:
        """What the hash of a lost job says where it still names this worker, but not this attempt: only a
        claim gives a job another epoch, and this worker did not claim it again."""
        try:
            record = self._retry(functools.partial(self._store.read, job.job_id, with_log=False))
        except ProtocolError:
            return None
        if record is None or record.state is not JobState.RUNNING:
            return None
        epoch = record.fields.get("epoch", "0")
        is_own = record.fields.get("owner") == self._worker_id and epoch != str(job.epoch)
        return epoch if is_own else None
