"""CLOSE (protocol line 9): writes an ended job's result from its hash and log, and lets the job expire.

Idempotent. The worker that ended the job may close it, the client that cancelled it, or a sweeper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract.errors import DeadlineExceeded, FleetError, JobFailed
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import DeleteVerdict, JobClosing

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

    def close_together(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Close ended jobs as :meth:`close` does, in two round trips. Sends no message for callbacks.

        Returns:
            For each job its record, or None if it was not closed: it is missing, has not ended or cannot be
            read. :meth:`close` reports why.
        """
        records: list[JobRecord | None] = []
        closings: list[JobClosing] = []
        for each in self._store.read_ended(job_ids):
            records.append(None if each is None else each.record)
            if each is not None:
                # As Celery does: no result replaces that of a success.
                keeps = each.record.ttl_ms == 0 or self._is_success(each.result_json)
                closings.append(self._closing(each.record, keeps_result=keeps))
        closed = dict(
            zip((each.job_id for each in closings), self._store.close_together(closings), strict=True)
        )
        return [
            record if closed.get(job_id) else None for job_id, record in zip(job_ids, records, strict=True)
        ]

    def _closing(self, record: JobRecord, *, keeps_result: bool) -> JobClosing:
        """Return the CLOSE of a job with its result in the format of Celery's ``Backend.store_result``."""
        if keeps_result:
            return JobClosing(record.job_id, record.queue)
        from celery.states import SUCCESS

        if record.state is JobState.DONE:
            # The other fields do not depend on the result, whose JSON pydantic writes fastest.
            meta = {"status": SUCCESS, "traceback": None, "children": None, "date_done": _now()}
            head = json.dumps({**meta, "task_id": record.job_id})[:-1]
            result_json = f'{head}, "result": {record.result().model_dump_json()}}}'
        else:
            value, state = _outcome(record)
            meta = self._backend._get_result_meta(
                self._backend.encode_result(value, state), state, None, None
            )
            result_json = self._backend.encode({**meta, "task_id": record.job_id})
        return JobClosing(record.job_id, record.queue, result_json, record.ttl_ms)

    def _is_success(self, result_json: str | None) -> bool:
        from celery.states import SUCCESS

        if result_json is None or f'"{SUCCESS}"' not in result_json:
            return False
        return bool(self._backend.decode_result(result_json)["status"] == SUCCESS)

    def delete(self, job_id: str) -> bool:
        """Remove everything that is stored of a job. Return false if it does not exist."""
        record = self._store.read(job_id, with_log=False)
        if record is None:
            return False
        if self._store.delete(job_id, record.queue) is DeleteVerdict.ENDED:
            self.close(job_id)
        return True

    def _write_result(self, record: JobRecord) -> None:
        if record.ttl_ms == 0:
            return
        self._backend.store_result(record.job_id, *_outcome(record))
        if record.ttl_ms is not None:
            self._backend.client.pexpire(self._backend.get_key_for_task(record.job_id), record.ttl_ms)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _outcome(record: JobRecord) -> tuple[Any, str]:
    """Return Celery's result and state of an ended job."""
    from celery.exceptions import TaskRevokedError
    from celery.states import FAILURE, REVOKED, SUCCESS

    if record.state is JobState.CANCELLED:
        return TaskRevokedError("expired" if record.has_expired else "cancelled"), REVOKED
    if record.state is JobState.DONE:
        return record.result().model_dump(mode="json"), SUCCESS
    return failure_of(record), FAILURE


def failure_of(record: JobRecord) -> FleetError:
    """Return the exception of a job that ended without an answer."""
    if record.error is not None:
        return record.error.to_error(record.job_id)
    if record.ended_by == "deadline":
        return DeadlineExceeded(
            "The job's deadline passed before it was done; use a longer deadline_s.", job_id=record.job_id
        )
    return JobFailed(f"The job ended with finish_reason {record.ended_by!r}.", job_id=record.job_id)
