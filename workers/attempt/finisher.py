"""Finisher: close ended jobs and run their Celery callbacks, in a thread that may be slow."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from celery import Celery

from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import ActiveJob, JobMessage
from pagefleet.workers.queue.canvas import Canvas, stored_context
from pagefleet.workers.threads.loop_thread import LoopThread
from pagefleet.workers.threads.outage_retry import OutageRetry

_MAX_BATCH: Final = 64
_MAX_TOKENS: Final = 8192
"""Long logs are read one at a time, as they block the server and take memory."""


class EndedJob(NamedTuple):
    """A job to close.

    ``ended_here``: this worker ended it, in the engine or during the claim. ``attempt`` is this worker's
    attempt; None if it did not run the job.
    """

    message: JobMessage
    ended_here: bool
    attempt: ActiveJob | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens in the job's log, as far as this worker knows."""
        return 0 if self.attempt is None else sum(len(each.token_ids) for each in self.attempt.choices)


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
        batch = EndedBatch(self._ended)
        while (ended := batch.take()) is not None:
            for each, record in zip(ended, self._close_together(ended), strict=True):
                if record is None:
                    self._close_alone(each)
                else:
                    self._settle(each, record)

    def _close_together(self, ended: Sequence[EndedJob]) -> list[JobRecord | None]:
        """Close jobs in two round trips. Returns None for those that :meth:`_close_alone` must close."""
        job_ids = [each.message.job_id for each in ended]
        return self._retry(functools.partial(self._closer.close_together, job_ids))

    def _close_alone(self, ended: EndedJob) -> None:
        try:
            record = self._retry(functools.partial(self._closer.close, ended.message.job_id))
        except ProtocolError:
            self._on_unreadable(ended.message)
            return
        if record is None:
            ended.message.drop()
        else:
            self._settle(ended, record)

    def _settle(self, ended: EndedJob, record: JobRecord) -> None:
        message = ended.message
        try:
            context = message.context if message.has_callbacks else stored_context(record)
            # At most once: callbacks are lost if the worker dies between the marker and the send.
            if context is not None:
                self._run_callbacks(record, context)
        except ProtocolError:
            self._on_unreadable(message)
            return
        self._on_closed(ended, record)
        message.finish(record)

    def _run_callbacks(self, record: JobRecord, context: Any) -> None:
        if self._retry(functools.partial(self._store.claim_callbacks, record.job_id)):
            self._canvas.run_callbacks(record, context)


class EndedBatch:
    """Takes the jobs that wait in a queue, up to a number of jobs and of tokens in their logs."""

    def __init__(self, ended: queue.SimpleQueue[EndedJob | None]) -> None:
        self._ended = ended
        self._is_over = False

    def take(self) -> list[EndedJob] | None:
        """Wait for the next jobs. Returns None after the last."""
        if self._is_over or (first := self._ended.get()) is None:
            return None
        batch, num_tokens = [first], first.num_tokens
        while len(batch) < _MAX_BATCH and num_tokens < _MAX_TOKENS:
            try:
                ended = self._ended.get_nowait()
            except queue.Empty:
                break
            if ended is None:
                self._is_over = True
                break
            batch.append(ended)
            num_tokens += ended.num_tokens
        return batch
