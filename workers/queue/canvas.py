"""Canvas: run a job's Celery callbacks. Celery does this for ordinary tasks in its tracer, a closure that
cannot be called from here.

A callback that cannot be sent, or that will never run, gets a failed result with the reason, because a
client may be waiting for it.
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
from pagefleet.workers.queue.result_encoder import ResultEncoder
from pagefleet.workers.threads.outage_retry import OutageRetry

logger = logging.getLogger(__name__)


def has_callbacks(context: Any) -> bool:
    return any(getattr(context, name, None) for name in CALLBACKS)


def stored_context(record: JobRecord) -> Any:
    """Return a ``Context`` with the callbacks that SUBMIT stored; None if there are none."""
    canvas = record.canvas
    return Context({**canvas, "id": record.job_id, "delivery_info": {}}) if canvas else None


class Canvas:
    """Links, errbacks, chain and chord of a message. ``context`` is its Celery ``Context``."""

    def __init__(self, app: Celery, store: JobStore, retry: OutageRetry, results: ResultEncoder) -> None:
        self._app = app
        self._store = store
        self._retry = retry
        self._results = results

    def run_callbacks(self, record: JobRecord, context: Any) -> None:
        """Send what follows a job that has ended."""
        if record.state is JobState.DONE:
            self._send_follow_ups(record, context)
        elif record.state is JobState.CANCELLED:
            mark = functools.partial(self._app.backend.mark_as_revoked, record.job_id, "cancelled")
            self._mark_chord(record.job_id, context, mark)
            error = JobFailed(f"Job {record.job_id}, the previous task of the chain, was cancelled.")
            self._store_failures(context.chain, error)
        else:
            self.run_errbacks(record.job_id, failure_of(record), context)

    def run_errbacks(self, job_id: str, error: FleetError, context: Any) -> None:
        """Send what follows a failure; also for a message that did not become a job."""
        mark = functools.partial(self._app.backend.mark_as_failure, job_id, error)
        self._mark_chord(job_id, context, mark)
        # Celery would overwrite existing results, so it runs without store_result; `refuse` keeps them.
        self._store_failures(context.chain, error)

    def _send_follow_ups(self, record: JobRecord, context: Any) -> None:
        value = record.result().model_dump(mode="json")
        options = {"parent_id": record.job_id, "root_id": context.root_id or record.job_id}
        for link in context.callbacks or ():
            self._send(link, [], value, options)
        if context.chain:
            *rest, first = context.chain
            self._send(first, rest, value, options)
        mark = functools.partial(self._app.backend.mark_as_done, record.job_id, value)
        self._mark_chord(record.job_id, context, mark)

    def _send(self, follow_up: Any, rest: list[Any], value: Any, options: Mapping[str, Any]) -> None:
        with_rest = {"chain": rest} if rest else {}
        try:
            signature(follow_up, app=self._app).apply_async((value,), **with_rest, **options)
        except Exception as error:  # noqa: BLE001
            self._on_send_error(options["parent_id"], [follow_up, *rest], error)

    def _mark_chord(self, job_id: str, context: Any, mark: Callable[..., Any]) -> None:
        """Let Celery count the job in its chord and send its errbacks."""
        try:
            mark(request=context, store_result=False)
        except Exception as error:  # noqa: BLE001
            self._on_send_error(job_id, [context.chord, *(context.errbacks or ())], error)

    def _on_send_error(self, job_id: str, follow_ups: list[Any], error: Exception) -> None:
        logger.exception("job %s: a Celery callback could not be sent", job_id, extra={"job": job_id})
        failure = JobFailed(f"Job {job_id} ended, but this callback of it could not be sent: {error}")
        self._store_failures(follow_ups, failure)

    def _store_failures(self, follow_ups: Any, error: FleetError) -> None:
        for task_id in ids_of(follow_ups):
            failure = self._results.failure(task_id, error)
            self._retry(functools.partial(self._store.refuse, task_id, failure))


def ids_of(signatures: Any) -> Iterator[str]:
    """Yield the task ids in a chain, link or chord, including those nested in groups and chords."""
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
