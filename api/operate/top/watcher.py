"""Watcher: poll a fleet in a thread, so that a server that does not answer cannot block the screen."""

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
    """The latest view, and the problem if it could not be updated.

    Args:
        interval_s: time between two reads, in seconds.
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
        """Wait until the thread has ended, but at most a second: it may hang in a connection."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def read(self) -> None:
        """Read the fleet once. An error is stored as the problem and not raised."""
        try:
            view = read_view(self._store)
        except FleetError as error:
            self.problem = error.message
        except Exception as error:
            # Catch everything: without the thread, the screen would show old figures without notice.
            logger.debug("cannot read the fleet", exc_info=True)
            self.problem = f"Cannot read the fleet: {type(error).__name__}: {error}"
        else:
            self.view, self.problem, self.read_at = view, None, time.time()
            self.history.append(view.generation_tok_s)
        self.num_reads += 1

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.read()
            self._stopping.wait(self._interval_s)
