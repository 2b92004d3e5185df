"""MessageRejector: store a failed result for a message that cannot become a job, because its sender waits."""

from __future__ import annotations

import functools
from collections.abc import Callable

from pagefleet.api.contract.errors import FleetError
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.queue.canvas import Canvas, has_callbacks
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.threads.outage_retry import OutageRetry


class MessageRejector:
    """Runs REFUSE, then acknowledges. If the worker dies in between, the message is still unacknowledged and
    the next worker rejects it.

    Args:
        on_fault: called with a description and a reason if the message is dropped, because its id belongs to
            another job.
    """

    def __init__(
        self,
        store: JobStore,
        retry: OutageRetry,
        results: ResultEncoder,
        canvas: Canvas,
        on_fault: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._retry = retry
        self._results = results
        self._canvas = canvas
        self._on_fault = on_fault

    def reject(self, message: JobMessage, error: FleetError) -> None:
        failure = self._results.failure(message.job_id, error, message.context)
        if not self._retry(functools.partial(self._store.refuse, message.job_id, failure)):
            if message.refusal is None:  # a refusal was counted by the message gate
                self._on_fault("a message is dropped", "its id already has a job or a result")
            message.drop()
            return
        if has_callbacks(message.context):
            self._canvas.run_errbacks(message.job_id, error, message.context)
        message.reject(error)
