"""Calls into Celery's event loop from other threads, in the order in which they were made."""

from __future__ import annotations

import _thread
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class HubMailbox:
    """Celery's request callbacks may run on the hub's thread only. kombu's ``call_soon`` keeps a set, which
    has no order, so that an end could overtake its start; this keeps one queue behind one ``call_soon``."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._hub: Any = None

    def attach(self, hub: Any) -> None:
        """From now on posted calls run on this hub."""
        self._hub = hub
        hub.call_soon(self.run_all)

    def post(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if self._hub is not None:
            self._hub.call_soon(self.run_all)

    def wake(self) -> None:
        """From a signal handler, which runs on the hub's own thread: a call from there would not end the
        hub's waiting. No ``Thread``: its start takes a lock, which the interrupted code may hold."""
        _thread.start_new_thread(self.post, (_do_nothing,))

    def run_all(self) -> None:
        """On the hub's thread: runs what was posted; one failing call does not keep the others back."""
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                logger.exception("a Celery callback failed")


def _do_nothing() -> None:
    pass
