"""PooledMessage: one Celery request on its way through the engine.

Written against Celery 5.7: ``Request`` passes bound methods to the pool and reads back a weak reference.
``tests/workers/test_celery_contract.py`` tests the internals used here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore
from celery.worker.state import task_ready
from kombu.transport.virtual.base import QoS as VirtualQoS

from pagefleet.api.broker.closing import failure_of
from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.job.bare_message import CALLBACKS, LINEAGE, BareMessage
from pagefleet.workers.queue.canvas import has_callbacks
from pagefleet.workers.queue.hub_call_queue import HubCallQueue
from pagefleet.workers.queue.message_rules import REFUSAL

_SUMMARY: Final = ("finish_reason", "num_tokens", "attempts")


class MessagePool(Protocol):
    """The part of the pool that its messages use."""

    hub_calls: HubCallQueue

    def forget(self, message: PooledMessage) -> None:
        """The message is about to be settled."""

    def cancel(self, job_id: str) -> None: ...


class PooledMessage(JobMessage):
    """Settles a Celery request. All of Celery's callbacks run on the hub's thread."""

    def __init__(
        self, pool: MessagePool, slot: int, request_dict: Mapping[str, Any], callbacks: Mapping[str, Any]
    ) -> None:
        self.job_id = request_dict["id"]
        self.queue = _queue_of(request_dict)
        self.lane: Lane = "batch" if keys.parse_queue(self.queue).lane == "batch" else "interactive"
        self.refusal = request_dict.get(REFUSAL)
        self.slot = slot
        self._pool = pool
        self._started_at = time.monotonic()
        self._accept_callback: Callable[..., None] = callbacks["accept_callback"]
        self._finish_callback: Callable[..., None] = callbacks["callback"]
        self._request: Any = self._finish_callback.__self__
        self.bare = None if "job_id" in request_dict["kwargs"] else self._bare(request_dict)
        # `inspect active` would show the arguments, and those of a bare message contain its prompt.
        self._request._args, self._request._kwargs = (), {}
        self._started_fields: Mapping[str, Any] | None = None
        self._settled = False

    @property
    def context(self) -> Any:
        return self._request._context

    @property
    def has_callbacks(self) -> bool:
        return has_callbacks(self.context)

    @property
    def delivery_tag(self) -> str:
        return str(self._request.message.delivery_tag)

    def _bare(self, request_dict: Mapping[str, Any]) -> BareMessage:
        request, context = self._request, self.context
        return BareMessage(
            request_dict["kwargs"],
            request_dict["args"],
            self.lane,
            request.not_before,
            request.start_by,
            request.time_limits,
            {name: getattr(context, name, None) for name in (*CALLBACKS, *LINEAGE)},
        )

    def adopt(self, newer: PooledMessage) -> None:
        """Continue with a newer message of the same job, which a reconnect has restored (protocol line 4).

        The older message is acknowledged, unless both have the same delivery tag. Then both are one message,
        which was restored while it was held here: acknowledging it would leave the job without a message.
        """
        older, older_tag = self._request, self.delivery_tag
        self._request = newer._request
        self._finish_callback, self._accept_callback = newer._finish_callback, newer._accept_callback
        if self.delivery_tag != older_tag:
            self._pool.hub_calls.post(older.acknowledge)
        if self._started_fields is not None:
            self.mark_started(self._started_fields)

    def use_channel(self, channel: Any) -> None:
        self._request.message.channel = channel

    def mark_started(self, event_fields: Mapping[str, Any]) -> None:
        self._started_at = time.monotonic()
        self._started_fields = self._request.started_fields = dict(event_fields)
        accept, started_at = self._accept_callback, self._started_at
        self._pool.hub_calls.post(lambda: accept(self.slot, started_at))

    def finish(self, record: JobRecord) -> None:
        if record.state is JobState.CANCELLED:
            self._settle(lambda: self._revoke(expired=record.has_expired))
        elif record.state is JobState.DONE:
            self._settle(lambda: self._finish_callback((0, _summary(record), self._runtime())))
        else:
            self._fail(failure_of(record))

    def reject(self, error: Exception) -> None:
        self._fail(error)

    def drop(self) -> None:
        self._settle(lambda: self._finish_callback((1, _exception_info(Ignore()), self._runtime())))

    def defer(self) -> None:
        self._settle(self._acknowledge_deferred)

    def requeue(self) -> None:
        self._settle(self._restore)

    def terminate(self, signal: object = None) -> None:
        """Celery's revoke with ``terminate=True``.

        Celery itself reports the revocation of a task that has started. Before the start it waits for the
        start, which a cancelled job never has, so that :meth:`finish` reports it.
        """
        self._settled = self._settled or self._request.time_start is not None
        self._pool.cancel(self.job_id)

    def _fail(self, error: Exception) -> None:
        """The error's text may quote the prompt. It is in the result; events and logs get the code only."""
        redacted = type(error)(f"{getattr(error, 'code', 'error')}; see the result for the message")
        self._settle(lambda: self._finish_callback((1, _exception_info(redacted), self._runtime())))

    def _revoke(self, *, expired: bool) -> None:
        """Do what Celery does for a revoked task, except for the result, which CLOSE has stored."""
        request = self._request
        task_ready(request)
        request.send_event("task-revoked", terminated=True, signum=None, expired=expired)
        request.acknowledge()
        request._already_revoked = True

    def _acknowledge_deferred(self) -> None:
        request = self._request
        request.acknowledge()
        request.send_event("task-rejected", requeue=True)
        task_ready(request)

    def _restore(self) -> None:
        """Put the message at the front of its queue. kombu's requeue would put it at the back."""
        request = self._request
        channel = request.message.channel
        channel.qos.restore_by_tag(self.delivery_tag)
        VirtualQoS.ack(channel.qos, self.delivery_tag)
        request.acknowledged = True
        # A started task is shown as waiting for a retry, not as running here.
        request.send_event("task-rejected" if self._started_fields is None else "task-retried", requeue=True)
        task_ready(request)

    def _settle(self, call: Callable[[], None]) -> None:
        self._pool.forget(self)
        if not self._settled:
            self._settled = True
            self._pool.hub_calls.post(call)

    def _runtime(self) -> float:
        return time.monotonic() - self._started_at


def _queue_of(request_dict: Mapping[str, Any]) -> str:
    return str((request_dict.get("delivery_info") or {}).get("routing_key"))


def _summary(record: JobRecord) -> str:
    """Return what events show of a result. It never contains text."""
    values = (record.ended_by, sum(record.num_tokens), record.attempts)
    return " ".join(f"{name}={value}" for name, value in zip(_SUMMARY, values, strict=True))


def _exception_info(error: Exception) -> Any:
    """Return billiard's wrapper of an error. It needs a traceback, so the error must have been raised."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()
