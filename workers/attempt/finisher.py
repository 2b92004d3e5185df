"""Finisher: closes ended jobs, off the threads that must stay quick, and runs their Celery callbacks."""

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
        retry: OutageRetry,
        canvas: Canvas,
        *,
        on_closed: Callable[[Ended, JobRecord], None],
        on_unreadable: Callable[[JobMessage], None],
    ) -> None:
        self._on_closed = on_closed
        self._on_unreadable = on_unreadable
        self._store = store
        self._retry = retry
        self._canvas = canvas
        self._closer = JobCloser(store, app, send_callbacks=False)
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
        # At most once: a worker that dies between the marker and the send loses them, as the docs say.
        if context is not None and self._store.claim_callbacks(record.job_id):
            self._canvas.run_callbacks(record, context)
        return record
