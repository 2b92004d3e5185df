"""Refuser: a message that no job can be made of is answered, not dropped: somebody waits for its result."""

from __future__ import annotations

import functools
from collections.abc import Callable

from pagefleet.api.contract.errors import FleetError
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.queue.canvas import Canvas, has_callbacks
from pagefleet.workers.queue.celery_results import ResultForm
from pagefleet.workers.threads.outage_retry import OutageRetry


class Refuser:
    """REFUSE, then ack. The message is in the ledger of unacknowledged ones meanwhile: a worker that dies in
    between leaves it to the next one.

    Args:
        count: told of a message whose id is another's job: it is dropped.
    """

    def __init__(
        self,
        store: JobStore,
        retry: OutageRetry,
        results: ResultForm,
        canvas: Canvas,
        count: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._retry = retry
        self._results = results
        self._canvas = canvas
        self._count = count

    def refuse(self, message: JobMessage, error: FleetError) -> None:
        failure = self._results.failure(message.job_id, error, message.context)
        if not self._retry(functools.partial(self._store.refuse, message.job_id, failure)):
            if message.refusal is None:  # else it was counted when it came
                self._count("a message is dropped", "its id has a job or a result already")
            message.drop()
            return
        if has_callbacks(message.context):
            self._canvas.failed(message.job_id, error, message.context)
        message.reject(error)
