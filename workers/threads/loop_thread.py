"""A thread of the worker: if it ends by a mistake of ours, the process must not live on without it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final, NoReturn

from pagefleet.api.contract.errors import RedisUnavailable

logger = logging.getLogger(__name__)

CRASH_EXIT_STATUS: Final = 70


class LoopThread(threading.Thread):
    """Runs ``loop`` until it returns; what it raises ends the process.

    A worker that lost one of its threads would hold its jobs and its lease and move nothing: a hang. A
    worker that is gone loses its lease, and another goes on with its jobs.
    """

    def __init__(self, name: str, loop: Callable[[], None]) -> None:
        super().__init__(name=f"pagefleet-{name}", daemon=True)
        self._loop = loop

    def run(self) -> None:
        try:
            self._loop()
        except RedisUnavailable as error:
            # Only a worker that is leaving stops insisting: what it held comes back when its lease ends.
            logger.warning("the thread %s leaves without Redis: %s", self.name, error)
        # Also what is no Exception, such as a panic in a library's Rust code.
        except BaseException:
            logger.critical("the thread %s failed", self.name, exc_info=True)
            end_process(f"without its thread {self.name} a worker moves nothing")


def end_process(reason: str) -> NoReturn:
    """Leaves at once: whatever holds the process back is what is wrong with it."""
    logger.critical("the worker ends: %s", reason)
    logging.shutdown()
    os._exit(CRASH_EXIT_STATUS)
