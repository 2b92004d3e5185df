"""Inboxes: what one reader has not read yet, between the subscriber that delivers and the stream that reads.

Neither grows with a reader that does not read: above :data:`MAX_UNREAD` events all are dropped, and the
reader is told to read the log, which has them.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from contextlib import suppress
from typing import Final

from pagefleet.api.client.token_stream import LiveEvent, Resync

MAX_UNREAD: Final = 1024
"""Events. A reader that is slower than its job lives off the log."""


class Inbox:
    """For threads. ``put`` takes no lock that a fork could leave held in the child."""

    def __init__(self, max_unread: int = MAX_UNREAD) -> None:
        self._max_unread = max_unread
        self._events: queue.SimpleQueue[LiveEvent | Resync] = queue.SimpleQueue()

    def put(self, event: LiveEvent | Resync) -> None:
        if self._events.qsize() >= self._max_unread:
            with suppress(queue.Empty):
                while True:
                    self._events.get_nowait()
            event = Resync()
        self._events.put(event)

    def get(self, timeout_s: float) -> LiveEvent | Resync | None:
        """The next event, None after ``timeout_s`` without one."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def __len__(self) -> int:
        return self._events.qsize()


class AsyncInbox:
    """For one event loop.

    A queue with ``asyncio.timeout`` around it costs several times as much, once for each token; a timer that
    is made and cancelled for each token still costs as much as the rest. One timer goes on until it rings.
    """

    def __init__(self, max_unread: int = MAX_UNREAD) -> None:
        self._max_unread = max_unread
        self._events: deque[LiveEvent | Resync] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._give_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: LiveEvent | Resync) -> None:
        if len(self._events) >= self._max_unread:
            self._events.clear()
            event = Resync()
        self._events.append(event)
        self._wake()

    def __len__(self) -> int:
        return len(self._events)

    async def get(self, timeout_s: float) -> LiveEvent | Resync | None:
        """The next event, None after ``timeout_s`` without one."""
        if not self._events:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._give_up_at = loop.time() + timeout_s
            self._ring_at(loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Nothing more will come: who waits is told at once."""
        self._stop_timer()
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_at(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may ring earlier than the reader's patience ends, never later."""
        if self._timer is not None and self._timer.when() <= self._give_up_at:
            return
        self._stop_timer()
        self._timer = loop.call_at(self._give_up_at, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() >= self._give_up_at:
            self._wake()
        else:
            self._ring_at(loop)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
