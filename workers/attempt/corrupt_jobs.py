"""CorruptJobHandler: jobs whose data in Redis cannot be read, was changed from outside, or is gone."""

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


class CorruptJobHandler:
    """Makes such jobs dead letters (CONDEMN), settles their messages and counts each job once."""

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

    def handle_unreadable(self, message: JobMessage) -> None:
        """The job's hash or log cannot be read: make the job a dead letter."""
        queue = message.queue
        if self._retry(functools.partial(self._store.condemn, message.job_id, queue)):
            reason = f"the data of job {message.job_id} cannot be read"
            self._gate.record_fault("a job becomes a dead letter", reason)
            self._metrics.on_dead_letter()
            with contextlib.suppress(ProtocolError):
                self._retry(functools.partial(self._closer.close, message.job_id, queue))
        message.drop()

    def handle_missing(self, message: JobMessage) -> None:
        """Redis has no data of the job: remove the job from its ledger."""
        queue = message.queue
        if self._retry(functools.partial(self._store.condemn, message.job_id, queue, only_missing=True)):
            reason = f"the data of job {message.job_id} is gone"
            self._gate.record_fault("an open job is removed from its ledger", reason)
        message.drop()

    def was_overwritten(self, job: ActiveJob) -> bool:
        """Return whether the epoch in the job's hash was changed from outside, and not by a claim.

        A numeric epoch is counted as a fault here. Any other makes the job unreadable, which the next claim
        finds and counts.
        """
        epoch = self._foreign_epoch(job)
        if epoch is not None and re.fullmatch(r"-?\d{1,18}", epoch):
            reason = f"the epoch of job {job.job_id} was changed from outside"
            self._gate.record_fault("an attempt ends", reason)
        return epoch is not None

    def _foreign_epoch(self, job: ActiveJob) -> str | None:
        """Return the epoch of a lost job if the hash still names this worker but another epoch.

        Only a claim changes the epoch, and this worker has not claimed the job again.
        """
        try:
            record = self._retry(functools.partial(self._store.read, job.job_id, with_log=False))
        except ProtocolError:
            return None
        if record is None or record.state is not JobState.RUNNING:
            return None
        epoch = record.fields.get("epoch", "0")
        is_foreign = record.fields.get("owner") == self._worker_id and epoch != str(job.epoch)
        return epoch if is_foreign else None
