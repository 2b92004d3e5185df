"""HubCallQueue: run calls from other threads on Celery's event loop, in the order they were made."""

from __future__ import annotations

import _thread
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)


class HubCallQueue:
    """Celery's request callbacks may only run on the thread of its event loop, the hub.

    kombu's ``call_soon`` keeps its calls in an unordered set, so that the end of a task could overtake its
    start. This class keeps a queue and runs all of it with each ``call_soon``.
    """

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._hub: Any = None
        self.after_calls: Callable[[], None] = _do_nothing
        """Called once after the posted calls of each turn of the hub."""

    def attach(self, hub: Any) -> None:
        """Run posted calls on this hub from now on."""
        self._hub = hub
        hub.call_soon(self.run_all)

    def post(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if self._hub is not None:
            self._hub.call_soon(self.run_all)

    def flush_soon(self) -> None:
        """Let the hub call :attr:`after_calls`."""
        self.post(_do_nothing)

    def wake(self) -> None:
        """Wake the hub from a signal handler.

        The handler runs on the hub's thread, from which ``call_soon`` does not interrupt the hub's poll. It
        cannot use ``Thread`` either: starting one takes a lock that the interrupted code may hold.
        """
        _thread.start_new_thread(self.post, (_do_nothing,))

    def run_all(self) -> None:
        """Run all posted calls; must be called on the hub's thread. A failed call does not stop the next."""
        if not self._calls:
            return
        while self._calls:
            self._run(self._calls.popleft())
        self._run(self.after_calls)

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            logger.exception("a Celery callback failed")


def _do_nothing() -> None:
    pass
