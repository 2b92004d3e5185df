"""Periodic: a task that a worker repeats at a fixed interval in a separate thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pagefleet.api.contract.errors import ProtocolError, RedisUnavailable
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)


class Periodic:
    """Calls ``task`` every ``interval_s`` seconds until :meth:`stop`. A Redis outage skips a run."""

    def __init__(self, name: str, interval_s: float, task: Callable[[], object]) -> None:
        self._name = name
        self._interval_s = interval_s
        self._task = task
        self._stopping = threading.Event()
        self._thread = LoopThread(name, self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current run."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self._task()
            except ProtocolError as error:
                logger.error("this run of the %s failed: %s", self._name, error)
            except RedisUnavailable as error:
                logger.debug("this run of the %s was skipped, Redis is unavailable: %s", self._name, error)
