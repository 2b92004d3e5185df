"""Canvas: what Celery is to call after a job. Its tracer does this for ordinary tasks, in a closure that
cannot be called from here.

Whatever cannot be sent, or never will be, gets a failed result that says why: somebody may wait for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import Celery
from celery.app.task import Context
from celery.canvas import signature

from pagefleet.api.broker.closing import failure_of
from pagefleet.api.contract.errors import FleetError, JobFailed
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.job.bare_message import CALLBACKS
from pagefleet.workers.queue.celery_results import ResultForm
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)


def has_callbacks(context: Any) -> bool:
    return any(getattr(context, name, None) for name in CALLBACKS)


def stored_context(record: JobRecord) -> Any:
    """As the message's, from what SUBMIT wrote down of it; None where it has nothing to call."""
    canvas = record.canvas
    return Context({**canvas, "id": record.job_id, "delivery_info": {}}) if canvas else None


class Canvas:
    """Links, errbacks, chain and chord of a message. ``context`` is Celery's ``Context`` of it everywhere."""

    def __init__(self, app: Celery, store: JobStore, retry: OutageRetry, results: ResultForm) -> None:
        self._app = app
        self._store = store
        self._retry = retry
        self._results = results

    def ended(self, record: JobRecord, context: Any) -> None:
        if record.state is JobState.DONE:
            self._done(record, context)
        elif record.state is JobState.CANCELLED:
            mark = functools.partial(self._app.backend.mark_as_revoked, record.job_id, "cancelled")
            self._chord(record.job_id, context, mark)
            self._fail(
                context.chain, JobFailed(f"The job {record.job_id} before it in the chain was cancelled.")
            )
        else:
            self.failed(record.job_id, failure_of(record), context)

    def failed(self, job_id: str, error: FleetError, context: Any) -> None:
        mark = functools.partial(self._app.backend.mark_as_failure, job_id, error)
        self._chord(job_id, context, mark)
        # Celery stores these without a look at what is there.
        self._fail(context.chain, error)

    def _done(self, record: JobRecord, context: Any) -> None:
        value = record.result().model_dump(mode="json")
        options = {"parent_id": record.job_id, "root_id": context.root_id or record.job_id}
        for link in context.callbacks or ():
            self._send(link, [], value, options)
        if context.chain:
            *rest, first = context.chain
            self._send(first, rest, value, options)
        mark = functools.partial(self._app.backend.mark_as_done, record.job_id, value)
        self._chord(record.job_id, context, mark)

    def _send(self, follow_up: Any, rest: list[Any], value: Any, options: Mapping[str, Any]) -> None:
        with_rest = {"chain": rest} if rest else {}
        try:
            signature(follow_up, app=self._app).apply_async((value,), **with_rest, **options)
        except Exception as error:  # noqa: BLE001
            self._could_not(options["parent_id"], [follow_up, *rest], error)

    def _chord(self, job_id: str, context: Any, mark: Callable[..., Any]) -> None:
        """The job's part of its chord, and its errbacks, in Celery's own way."""
        try:
            mark(request=context, store_result=False)
        except Exception as error:  # noqa: BLE001
            self._could_not(job_id, [context.chord, *(context.errbacks or ())], error)

    def _could_not(self, job_id: str, follow_ups: list[Any], error: Exception) -> None:
        logger.exception("job %s: a Celery callback could not be sent", job_id, extra={"job": job_id})
        self._fail(follow_ups, JobFailed(f"The job {job_id} ended, but this could not be sent: {error}"))

    def _fail(self, follow_ups: Any, error: FleetError) -> None:
        for task_id in ids_of(follow_ups):
            failure = self._results.failure(task_id, error)
            self._retry(functools.partial(self._store.refuse, task_id, failure))


def ids_of(signatures: Any) -> Iterator[str]:
    """The tasks that a chain's rest, a link or a chord names, those inside groups and chords too."""
    if isinstance(signatures, list | tuple):
        for each in signatures:
            yield from ids_of(each)
    elif isinstance(signatures, Mapping):
        options, kwargs = signatures.get("options"), signatures.get("kwargs")
        task_id = options.get("task_id") if isinstance(options, Mapping) else None
        if isinstance(task_id, str):
            yield task_id
        if signatures.get("subtask_type") and isinstance(kwargs, Mapping):
            for name in ("tasks", "header", "body"):
                yield from ids_of(kwargs.get(name))
