"""EnginePool: a Celery pool whose slots are jobs in one running batch.

Celery keeps the life cycle of each request (received, started, acknowledged, revoked, events), so that Flower
shows every job separately although the engine computes them together.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import redis
from celery.concurrency.base import BasePool, apply_target
from celery.signals import worker_shutting_down

from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.connection import reason_of
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.queue.hub_call_queue import HubCallQueue
from pagefleet.workers.queue.pooled_message import PooledMessage
from pagefleet.workers.queue.unacked import restore_unacked

logger = logging.getLogger(__name__)

_FIRST_SLOT: Final = 1_000_000_000
"""Celery uses the slot as the id of the process that runs a task. No real process id is that large."""


class EnginePool(BasePool):  # type: ignore[misc]
    """Implements Celery's pool interface for the :class:`FleetWorker` in ``app.fleet_worker``."""

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
        self._received: list[PooledMessage] | None = None
        # For Celery's own small tasks (backend_cleanup, chord unlocks), which do not need the engine.
        self._side_pool = ThreadPoolExecutor(2, thread_name_prefix="pagefleet-side")

    @property
    def num_held(self) -> int:
        return len(self._messages)

    def room(self) -> dict[Lane, int]:
        num_batch = sum(message.lane == "batch" for message in self._messages.values())
        return self.worker.room(len(self._messages), num_batch)

    def lanes_with_room(self) -> list[Lane]:
        return [lane for lane, count in self.room().items() if count]

    def on_start(self) -> None:
        self.worker.start()
        # SIGTERM alone does not wake the hub, which may wait for BRPOP for up to a second.
        worker_shutting_down.connect(self._on_shutting_down)

    def _on_shutting_down(self, **_: Any) -> None:
        self.hub_calls.wake()

    def use_channel(self, channel: Any, flush: Callable[[], None] = lambda: None) -> None:
        """Switch to the channel of a new connection to the broker.

        Held messages are acknowledged over it. Messages that were lost with the old channel are restored to
        their queue (protocol line 14, AUDIT, the half for messages).

        Args:
            flush: sends the acknowledgements and events that Celery's callbacks have collected.
        """
        self._channel, self.hub_calls.after_calls = channel, flush
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
            task.add_done_callback(_log_failure)
            return task
        message = PooledMessage(self, next(self._slots), args[2], callbacks)
        if message.refusal is not None:
            # Not looked up below: a refused message may have the id of a job that is held.
            self._put(message)
            return message
        held = self._messages.get(message.job_id)
        if held is not None:
            held.adopt(message)
            return held
        self._messages[message.job_id] = message
        self._by_slot[message.slot] = message
        self._put(message)
        return message

    @contextlib.contextmanager
    def put_together(self) -> Iterator[None]:
        """Pass on the messages that Celery receives in this context at its end: one call claims them."""
        self._received = []
        try:
            yield
        finally:
            messages, self._received = self._received, None
            if messages:
                self.worker.put(*messages)

    def _put(self, message: PooledMessage) -> None:
        if self._received is None:
            self.worker.put(message)
        else:
            self._received.append(message)

    def terminate_job(self, pid: int, signal: object = None) -> None:
        message = self._by_slot.get(pid)
        if message is not None:
            message.terminate(signal)

    def cancel(self, job_id: str) -> None:
        self.worker.revoker.cancel(job_id)

    def forget(self, message: PooledMessage) -> None:
        if self._messages.get(message.job_id) is message:
            del self._messages[message.job_id]
        self._by_slot.pop(message.slot, None)

    def on_stop(self) -> None:
        """DRAIN (protocol line 17): release the jobs first, then their messages, then the lease."""
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
            logger.warning("messages stay unacknowledged until the lease expires: %s", reason_of(error))

    def _get_info(self) -> dict[str, Any]:
        """Return the statistics for `celery inspect stats` and for Flower's page of the worker."""
        info: dict[str, Any] = super()._get_info()
        return info | self.worker.inspect_stats.now() | {"messages-held": self.num_held}


def _log_failure(task: Future[Any]) -> None:
    """Log the error of one of Celery's own tasks, whose result is not read."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a Celery task in the side pool failed", exc_info=task.exception())
