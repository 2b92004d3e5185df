"""Watcher: reads a fleet again and again in a thread, so that a server that is away holds no screen up."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final

from pagefleet.api.contract.errors import FleetError
from pagefleet.api.operate.top.fleet_view import FleetView, read_view
from pagefleet.api.protocol.job_store import JobStore

_HISTORY: Final = 30
_JOIN_S: Final = 1.0

logger = logging.getLogger(__name__)


class Watcher:
    """The last view, and why there is no newer one.

    Args:
        interval_s: between two readings.
    """

    def __init__(self, store: JobStore, interval_s: float) -> None:
        self._store = store
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self.view: FleetView | None = None
        self.problem: str | None = None
        self.read_at = time.time()
        self.num_reads = 0
        self.history: deque[float] = deque(maxlen=_HISTORY)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or hangs in a connection for longer than a user waits."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def read(self) -> None:
        """Once; a server that does not answer is a state to show, no failure."""
        try:
            view = read_view(self._store)
        except FleetError as error:
            self.problem = error.message
        except Exception as error:
            # What is not expected is shown too: a dead thread would show old figures for ever.
            logger.debug("the fleet cannot be read", exc_info=True)
            self.problem = f"The fleet cannot be read: {type(error).__name__}: {error}"
        else:
            self.view, self.problem, self.read_at = view, None, time.time()
            self.history.append(view.generation_tok_s)
        self.num_reads += 1

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.read()
            self._stopping.wait(self._interval_s)
