"""EnginePool: a Celery pool whose "processes" are sequences of one running batch.

Celery keeps a request's whole life cycle (received, started, acknowledged, revoked, events), so that Flower
shows every job by itself although all run as one. Written against Celery 5.7: ``Request`` hands the pool
bound methods and reads back a weak reference; ``tests/workers/test_celery_contract.py`` pins what is used.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import Ignore
from celery.signals import worker_shutting_down
from celery.worker.state import task_ready
from kombu.transport.virtual.base import QoS as VirtualQoS

from pagefleet.api.broker.closing import failure_of
from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import JobState
from pagefleet.api.protocol.connection import reason_of
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.job.bare_message import CALLBACKS, LINEAGE, BareMessage
from pagefleet.workers.queue.canvas import has_callbacks
from pagefleet.workers.queue.hub_call_queue import HubCallQueue
from pagefleet.workers.queue.message_rules import REFUSAL
from pagefleet.workers.queue.unacked import restore_unacked

logger = logging.getLogger(__name__)

# Above any real process id: Celery only uses it as the name of what runs a task.
_FIRST_SLOT = 1_000_000_000
_SUMMARY = ("finish_reason", "num_tokens", "attempts")


class PooledMessage(JobMessage):
    """One Celery request on its way through the engine. Every answer runs on the hub's thread."""

    def __init__(
        self, pool: EnginePool, slot: int, request_dict: Mapping[str, Any], callbacks: Mapping[str, Any]
    ) -> None:
        self.job_id = request_dict["id"]
        self.queue = _queue_of(request_dict)
        self.lane: Lane = "batch" if keys.parse_queue(self.queue).lane == "batch" else "interactive"
        self.refusal = request_dict.get(REFUSAL)
        self._pool = pool
        self._slot = slot
        self._begun_at = time.monotonic()
        self._accept_callback: Callable[..., None] = callbacks["accept_callback"]
        self._finish_callback: Callable[..., None] = callbacks["callback"]
        self._request: Any = self._finish_callback.__self__
        self.bare = None if "job_id" in request_dict["kwargs"] else self._bare(request_dict)
        # `inspect active` would show them to all who may ask workers, and a bare message's hold its prompt.
        self._request._args, self._request._kwargs = (), {}
        self._started_fields: Mapping[str, Any] | None = None
        self._answered = False

    @property
    def context(self) -> Any:
        return self._request._context

    @property
    def has_callbacks(self) -> bool:
        return has_callbacks(self.context)

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
        """The same job came again (a reconnect restored its message): go on with the newer message.

        Protocol line 4: adopt, ack the older. A message that was put back while it was held here is the same
        one, under the same tag: acknowledging the older would take it off the ledger, and the job would
        stand without a message.
        """
        older, older_tag = self._request, self.delivery_tag
        self._request, self._finish_callback, self._accept_callback = (
            newer._request,
            newer._finish_callback,
            newer._accept_callback,
        )
        if self.delivery_tag != older_tag:
            self._pool.hub_calls.post(older.acknowledge)
        if self._started_fields is not None:
            self.mark_started(self._started_fields)

    @property
    def delivery_tag(self) -> str:
        return str(self._request.message.delivery_tag)

    def use_channel(self, channel: Any) -> None:
        self._request.message.channel = channel

    def mark_started(self, event_fields: Mapping[str, Any]) -> None:
        self._begun_at = time.monotonic()
        self._started_fields = self._request.started_fields = dict(event_fields)
        accept, begun_at = self._accept_callback, self._begun_at
        self._pool.hub_calls.post(lambda: accept(self._slot, begun_at))

    def finish(self, record: JobRecord) -> None:
        if record.state is JobState.CANCELLED:
            self._answer(lambda: self._revoked(expired=record.has_expired))
        elif record.state is JobState.DONE:
            self._answer(lambda: self._finish_callback((0, _summary(record), self._runtime())))
        else:
            self._fail(failure_of(record))

    def reject(self, error: Exception) -> None:
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Its words may quote the prompt: they are in the result, and events and logs get the kind alone."""
        told = type(error)(f"{getattr(error, 'code', 'error')}; the result says why")
        self._answer(lambda: self._finish_callback((1, _exception_info(told), self._runtime())))

    def drop(self) -> None:
        self._answer(lambda: self._finish_callback((1, _exception_info(Ignore()), self._runtime())))

    def defer(self) -> None:
        self._answer(self._leave_waiting)

    def requeue(self) -> None:
        self._answer(self._restore)

    def _revoked(self, *, expired: bool) -> None:
        """What Celery does, but for the result, which CLOSE has stored."""
        request = self._request
        task_ready(request)
        request.send_event("task-revoked", terminated=True, signum=None, expired=expired)
        request.acknowledge()
        request._already_revoked = True

    def _leave_waiting(self) -> None:
        request = self._request
        request.acknowledge()
        request.send_event("task-rejected", requeue=True)
        task_ready(request)

    def _restore(self) -> None:
        """kombu's own requeue is the back of the queue; a restore is the front."""
        request = self._request
        channel = request.message.channel
        channel.qos.restore_by_tag(self.delivery_tag)
        VirtualQoS.ack(channel.qos, self.delivery_tag)
        request.acknowledged = True
        # Shown as one that will be tried again, not as one that runs here.
        request.send_event("task-rejected" if self._started_fields is None else "task-retried", requeue=True)
        task_ready(request)

    def terminate(self, signal: object = None) -> None:
        """Celery's revoke(terminate=True). Of a job that has started, Celery announces the revocation itself;
        before that it only waits for the start, which a cancelled job never has."""
        self._answered = self._answered or self._request.time_start is not None
        self._pool.worker.cancel(self.job_id)

    def _answer(self, call: Callable[[], None]) -> None:
        self._pool.forget(self)
        if not self._answered:
            self._answered = True
            self._pool.hub_calls.post(call)

    def _runtime(self) -> float:
        return time.monotonic() - self._begun_at


class EnginePool(BasePool):  # type: ignore[misc]
    """Celery's pool interface in front of a :class:`FleetWorker`, which it finds as ``app.fleet_worker``."""

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.worker: FleetWorker = self.app.fleet_worker
        self.hub_calls = HubCallQueue()
        self._messages: dict[str, PooledMessage] = {}
        self._by_slot: dict[int, PooledMessage] = {}
        self._slots = itertools.count(_FIRST_SLOT)
        self._channel: Any = None
        # Celery's own small tasks (backend_cleanup, chord unlocks) do not belong on the engine.
        self._side_pool = ThreadPoolExecutor(2, thread_name_prefix="pagefleet-side")

    @property
    def num_held(self) -> int:
        return len(self._messages)

    def lanes_with_room(self) -> list[Lane]:
        num_batch = sum(message.lane == "batch" for message in self._messages.values())
        return self.worker.lanes_with_room(len(self._messages), num_batch)

    def on_start(self) -> None:
        self.worker.start()
        # SIGTERM alone does not wake the hub: it would wait for its BRPOP, up to a second.
        worker_shutting_down.connect(self._on_shutting_down)

    def _on_shutting_down(self, **_: Any) -> None:
        self.hub_calls.wake()

    def use_channel(self, channel: Any) -> None:
        """A new connection to the broker: what is held is acknowledged over it from now on, and what the old
        one took with it goes back to its queue (protocol line 14, AUDIT, for messages)."""
        self._channel = channel
        held = list(self._messages.values())
        for message in held:
            message.use_channel(channel)
        restore_unacked(channel, self.worker.worker_id, {message.delivery_tag for message in held})

    def register_with_event_loop(self, loop: Any) -> None:
        self.hub_calls.attach(loop)

    def on_apply(
        self, target: Callable[..., Any], args: Any = (), kwargs: Any = None, **callbacks: Any
    ) -> Any:
        if args[0] != keys.GENERATE_TASK:
            task = self._side_pool.submit(
                apply_target, target, args, kwargs, callbacks["callback"], callbacks["accept_callback"]
            )
            task.add_done_callback(_report)
            return task
        message = PooledMessage(self, next(self._slots), args[2], callbacks)
        if message.refusal is not None:
            # Its id may be that of a job that is held.
            self.worker.admission.put(message)
            return message
        held = self._messages.get(message.job_id)
        if held is not None:
            held.adopt(message)
            return held
        self._messages[message.job_id] = message
        self._by_slot[message._slot] = message
        self.worker.admission.put(message)
        return message

    def terminate_job(self, pid: int, signal: object = None) -> None:
        message = self._by_slot.get(pid)
        if message is not None:
            message.terminate(signal)

    def forget(self, message: PooledMessage) -> None:
        if self._messages.get(message.job_id) is message:
            del self._messages[message.job_id]
        self._by_slot.pop(message._slot, None)

    def on_stop(self) -> None:
        """DRAIN (protocol line 17): released jobs first, then their messages, then the lease."""
        self.worker.drain(lambda: self.num_held, self.hub_calls.run_all, self._restore)
        self._messages.clear()
        self._side_pool.shutdown(wait=True, cancel_futures=True)
        self.hub_calls.run_all()

    on_terminate = on_stop

    def _restore(self) -> None:
        if self._channel is None:
            return
        try:
            restore_unacked(self._channel, self.worker.worker_id)
        except (*self._channel.connection_errors, redis.ResponseError) as error:
            logger.warning("messages stay unacknowledged until the lease has run out: %s", reason_of(error))

    def _get_info(self) -> dict[str, Any]:
        """For `inspect stats` and Flower's page of the worker, which shows each as a line."""
        info: dict[str, Any] = super()._get_info()
        return info | self.worker.inspect_stats.now() | {"messages-held": self.num_held}


def _queue_of(request_dict: Mapping[str, Any]) -> str:
    return str((request_dict.get("delivery_info") or {}).get("routing_key"))


def _summary(record: JobRecord) -> str:
    """What events carry of a result: never its text."""
    values = (record.ended_by, sum(record.num_tokens), record.attempts)
    return " ".join(f"{name}={value}" for name, value in zip(_SUMMARY, values, strict=True))


def _exception_info(error: Exception) -> Any:
    """billiard wants a traceback, which an exception has only once it was raised."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()


def _report(task: Future[Any]) -> None:
    """Nobody asks a small task of Celery's for its result."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a task beside the engine failed", exc_info=task.exception())
