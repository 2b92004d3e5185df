"""Finisher: close ended jobs and run their Celery callbacks, in a thread that may be slow."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable
from typing import NamedTuple

from celery import Celery

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.queue.canvas import Canvas, stored_context
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry


class EndedJob(NamedTuple):
    """A job to close.

    ``ended_here``: this worker ended it, in the engine or during the claim. ``attempt`` is this worker's
    attempt; None if it did not run the job.
    """

    message: JobMessage
    ended_here: bool
    attempt: ActiveJob | None = None


class Finisher:
    """CLOSE (protocol line 9): store the result, run callbacks at most once, leave the ledger, acknowledge.

    Args:
        on_closed: called for each closed job, before its message is settled.
        on_unreadable: called for each message whose job cannot be read.
    """

    def __init__(
        self,
        store: JobStore,
        app: Celery,
        retry: OutageRetry,
        canvas: Canvas,
        *,
        on_closed: Callable[[EndedJob, JobRecord], None],
        on_unreadable: Callable[[JobMessage], None],
    ) -> None:
        self._on_closed = on_closed
        self._on_unreadable = on_unreadable
        self._store = store
        self._retry = retry
        self._canvas = canvas
        self._closer = JobCloser(store, app, send_callbacks=False)
        self._ended: queue.SimpleQueue[EndedJob | None] = queue.SimpleQueue()
        self._thread = LoopThread("finisher", self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the queued jobs and end the thread."""
        self._ended.put(None)
        self._thread.join()

    def put(self, ended: EndedJob) -> None:
        self._ended.put(ended)

    def _run(self) -> None:
        while (ended := self._ended.get()) is not None:
            message = ended.message
            try:
                record = self._retry(functools.partial(self._close, message))
            except ProtocolError:
                self._on_unreadable(message)
                continue
            if record is None:
                message.drop()
            else:
                self._on_closed(ended, record)
                message.finish(record)

    def _close(self, message: JobMessage) -> JobRecord | None:
        record = self._closer.close(message.job_id)
        if record is None:
            return None
        context = message.context if message.has_callbacks else stored_context(record)
        # At most once: callbacks are lost if the worker dies between the marker and the send.
        if context is not None and self._store.claim_callbacks(record.job_id):
            self._canvas.run_callbacks(record, context)
        return record
