"""CLOSE (protocol line 9): an ended job's result is written from its hash and log, then it may expire.

Idempotent, and anyone may do it: the worker that ended the job, the client that cancelled it, a sweeper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagefleet.api.contract.errors import DeadlineExceeded, FleetError, JobFailed
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operations import DeleteVerdict

if TYPE_CHECKING:
    from celery import Celery


class JobCloser:
    """Writes Celery's result of an ended job, so that ``AsyncResult(job_id).get()`` works everywhere.

    Args:
        tell_callbacks: where the job has Celery callbacks that were not called, a message is sent: the worker
            that gets it calls them. Not by that worker itself.
    """

    def __init__(self, store: JobStore, app: Celery, *, tell_callbacks: bool = True) -> None:
        self._tell_callbacks = tell_callbacks
        self._app = app
        self._store = store
        self._backend: Any = app.backend

    def close(self, job_id: str, queue: str | None = None) -> JobRecord | None:
        """Writes the result, takes the job out of its ledger and starts the clock of its expiry.

        Args:
            queue: in whose ledger it stands; by default what its hash says.

        Returns:
            The job as it ended, or None where the server knows no such job, or no end of it: it was restarted
            without its last second, and the job goes on.
        """
        record = self._store.read(job_id)
        if record is None or not record.state.is_final:
            return None
        with redis_errors(self._store.settings.url):
            self._write_result(record)
        if self._tell_callbacks and record.canvas and record.ttl_ms != 0 and not record.was_called_back:
            self._send(record)
        self._store.close(job_id, queue or record.queue)
        return record

    def delete(self, job_id: str) -> bool:
        """Removes everything that is kept of a job; false where there is no such job."""
        record = self._store.read(job_id, with_log=False)
        if record is None:
            return False
        if self._store.delete(job_id, record.queue) is DeleteVerdict.ENDED:
            self.close(job_id)
        return True

    def _send(self, record: JobRecord) -> None:
        # It imports this module.
        from pagefleet.api.broker.sending import send_message

        send_message(self._app, record.job_id, record.queue, record.priority)

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
    """The exception that stands for a job which ended without an answer."""
    if record.error is not None:
        return record.error.to_error(record.job_id)
    if record.ended_by == "deadline":
        return DeadlineExceeded("The job's deadline passed before it was done.", job_id=record.job_id)
    return JobFailed(f"The job ended with {record.ended_by!r}.", job_id=record.job_id)
