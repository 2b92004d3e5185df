"""Finisher: closes ended jobs, off the threads that must stay quick, and runs their Celery callbacks."""

from __future__ import annotations

import functools
import logging
import queue
from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Celery
from celery.canvas import group, signature

from pagefleet.api.closing import JobCloser, failure_of
from pagefleet.api.errors import ProtocolError
from pagefleet.api.job_record import JobRecord
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import JobState
from pagefleet.workers.active_job import ActiveJob, JobMessage
from pagefleet.workers.insist import Insist
from pagefleet.workers.loop_thread import LoopThread

logger = logging.getLogger(__name__)


class Ended(NamedTuple):
    """A job to be closed.

    ``here``: it ended by this worker, in the engine or when it was claimed. ``job`` is the attempt, where
    there was one.
    """

    message: JobMessage
    here: bool
    job: ActiveJob | None = None


class Finisher:
    """CLOSE (protocol line 9) in a thread of its own: result, callbacks behind a marker, ledger, ack.

    Args:
        on_closed: told of each job that is closed, before its message is answered.
        on_unreadable: told of each message whose job could not be read.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        insist: Insist,
        *,
        on_closed: Callable[[Ended, JobRecord], None],
        on_unreadable: Callable[[JobMessage], None],
    ) -> None:
        self._on_closed = on_closed
        self._on_unreadable = on_unreadable
        self._store = store
        self._insist = insist
        self._app = app
        self._closer = JobCloser(store, app)
        self._ended: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
        self._thread = LoopThread("finisher", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Closes what is queued and ends the thread."""
        self._ended.put(None)
        self._thread.join()

    def put(self, ended: Ended) -> None:
        self._ended.put(ended)

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            message = ended.message
            try:
                record = self._insist(functools.partial(self._close, message))
            except ProtocolError:
                self._on_unreadable(message)
                continue
            if record is None:
                message.dropped()
            else:
                self._on_closed(ended, record)
                message.ended(record)

    def _close(self, message: JobMessage) -> JobRecord | None:
        record = self._closer.close(message.job_id)
        if record is not None and message.has_callbacks:
            self._call_back(record, message)
        return record

    def _call_back(self, record: JobRecord, message: JobMessage) -> None:
        """At most once: a worker that dies between the marker and the send loses them, as the docs say."""
        if not self._store.claim_callbacks(record.job_id):
            return
        try:
            run_callbacks(self._app, record, message.context)
        except Exception:
            about = {"job": record.job_id, "tenant": record.tenant, "attempt": record.attempts}
            logger.exception("job %s: its Celery callbacks could not be sent", record.job_id, extra=about)


def run_callbacks(app: Celery, record: JobRecord, context: Any) -> None:
    """Links, chain and chord of a Celery message. Celery's tracer does this for ordinary tasks, in a
    closure that cannot be called from here; ``mark_as_done`` covers the chord only.

    Args:
        context: Celery's ``Context`` of the message.
    """
    if record.state is JobState.CANCELLED:
        app.backend.mark_as_revoked(record.job_id, "cancelled", request=context, store_result=False)
        return
    if record.state is not JobState.DONE:
        app.backend.mark_as_failure(record.job_id, failure_of(record), request=context, store_result=False)
        return
    value = record.result().model_dump(mode="json")
    options = {"parent_id": record.job_id, "root_id": context.root_id or record.job_id}
    if context.callbacks:
        links = [signature(link, app=app) for link in context.callbacks]
        group(links, app=app).apply_async((value,), **options)
    if context.chain:
        *rest, first = context.chain
        signature(first, app=app).apply_async((value,), chain=rest, **options)
    app.backend.mark_as_done(record.job_id, value, request=context, store_result=False)
