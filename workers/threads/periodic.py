"""A duty that a worker does every so often, in a thread of its own, as long as Redis can be reached."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pagefleet.api.contract.errors import ProtocolError, RedisUnavailable
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)


class Periodic:
    """Calls ``duty`` every ``every_s`` seconds until :meth:`stop`; an outage only skips a turn."""

    def __init__(self, name: str, every_s: float, duty: Callable[[], object]) -> None:
        self._name = name
        self._every_s = every_s
        self._duty = duty
        self._stopping = threading.Event()
        self._thread = LoopThread(name, self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the turn that it is in."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._duty()
            except ProtocolError as error:
                logger.error("no %s this time: %s", self._name, error)
            except RedisUnavailable as error:
                logger.debug("no %s without Redis: %s", self._name, error)
