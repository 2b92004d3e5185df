"""Inbox: the events that a stream has not read yet, between threads."""

from __future__ import annotations

import queue
from contextlib import suppress

from pagefleet.api.client.events import MAX_UNREAD, LiveEvent, Resync


class Inbox:
    """Bounded: if more than ``max_unread`` events wait, all are dropped and the stream reads the log.

    ``put`` takes no lock that a fork could leave held in the child.
    """

    def __init__(self, max_unread: int = MAX_UNREAD) -> None:
        self._max_unread = max_unread
        self._events: queue.SimpleQueue[LiveEvent | Resync | None] = queue.SimpleQueue()

    def put(self, event: LiveEvent | Resync) -> None:
        if self._events.qsize() >= self._max_unread:
            with suppress(queue.Empty):
                while True:
                    self._events.get_nowait()
            event = Resync()
        self._events.put(event)

    def get(self, timeout_s: float) -> LiveEvent | Resync | None:
        """Return the next event, or None after ``timeout_s`` without one."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """No more events will come: a waiting :meth:`get` returns at once."""
        self._events.put(None)

    def __len__(self) -> int:
        return self._events.qsize()
