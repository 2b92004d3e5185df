"""AsyncInbox: the events that a stream has not read yet, on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from pagefleet.api.client.events import MAX_UNREAD, LiveEvent, Resync


class AsyncInbox:
    """Bounded: if more than ``max_unread`` events wait, all are dropped and the stream reads the log.

    ``asyncio.timeout`` around a queue costs several times as much for each token, and a timer that is made
    and cancelled for each token costs as much as the rest. So one timer runs on until it rings.
    """

    def __init__(self, max_unread: int = MAX_UNREAD) -> None:
        self._max_unread = max_unread
        self._events: deque[LiveEvent | Resync] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wait_until = 0.0
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
        """Return the next event, or None after ``timeout_s`` without one."""
        if not self._events:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._wait_until = loop.time() + timeout_s
            self._set_timer(loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """No more events will come: a waiting :meth:`get` returns at once."""
        self._stop_timer()
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may ring before the wait is over, but never after it."""
        if self._timer is not None and self._timer.when() <= self._wait_until:
            return
        self._stop_timer()
        self._timer = loop.call_at(self._wait_until, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() >= self._wait_until:
            self._wake()
        else:
            self._set_timer(loop)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
