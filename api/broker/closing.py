"""CLOSE (protocol line 9): writes an ended job's result from its hash and log, and lets the job expire.

Idempotent. The worker that ended the job may close it, the client that cancelled it, or a sweeper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.errors import DeadlineExceeded, FleetError, JobFailed
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import DeleteVerdict

if TYPE_CHECKING:
    from celery import Celery


class JobCloser:
    """Writes Celery's result of an ended job, so that ``AsyncResult(job_id).get()`` works everywhere.

    Args:
        send_callbacks: if the job has Celery callbacks that were not called, send a message; the worker that
            receives it calls them. That worker itself sets this to false.
    """

    def __init__(self, store: JobStore, app: Celery, *, send_callbacks: bool = True) -> None:
        self._send_callbacks = send_callbacks
        self._app = app
        self._store = store
        self._backend: Any = app.backend

    def close(self, job_id: str, queue: str | None = None) -> JobRecord | None:
        """Write the result, remove the job from its ledger and start its TTL.

        Args:
            queue: the queue whose ledger contains the job; by default the one in its hash.

        Returns:
            The ended job, or None if it does not exist or has not ended (a restarted server may have lost its
            last second).
        """
        record = self._store.read(job_id)
        if record is None or not record.state.is_final:
            return None
        with redis_errors(self._store.settings.url):
            self._write_result(record)
        if self._send_callbacks and record.canvas and record.ttl_ms != 0 and not record.was_called_back:
            send_message(self._app, record.job_id, record.queue, record.priority)
        self._store.close(job_id, queue or record.queue)
        return record

    def delete(self, job_id: str) -> bool:
        """Remove everything that is stored of a job. Return false if it does not exist."""
        record = self._store.read(job_id, with_log=False)
        if record is None:
            return False
        if self._store.delete(job_id, record.queue) is DeleteVerdict.ENDED:
            self.close(job_id)
        return True

    def _write_result(self, record: JobRecord) -> None:
        from celery.exceptions import TaskRevokedError
        from celery.states import FAILURE, REVOKED, SUCCESS

        if record.ttl_ms == 0:
            return
        if record.state is JobState.CANCELLED:
            reason = "expired" if record.has_expired else "cancelled"
            self._backend.store_result(record.job_id, TaskRevokedError(reason), REVOKED)
        elif record.state is JobState.DONE:
            self._backend.store_result(record.job_id, record.result().model_dump(mode="json"), SUCCESS)
        else:
            self._backend.store_result(record.job_id, failure_of(record), FAILURE)
        if record.ttl_ms is not None:
            self._backend.client.pexpire(self._backend.get_key_for_task(record.job_id), record.ttl_ms)


def failure_of(record: JobRecord) -> FleetError:
    """Return the exception of a job that ended without an answer."""
    if record.error is not None:
        return record.error.to_error(record.job_id)
    if record.ended_by == "deadline":
        return DeadlineExceeded(
            "The job's deadline passed before it was done; use a longer deadline_s.", job_id=record.job_id
        )
    return JobFailed(f"The job ended with finish_reason {record.ended_by!r}.", job_id=record.job_id)
