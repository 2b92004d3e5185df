"""LoopThread: a thread of the worker whose unexpected end terminates the process."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from pagefleet.api.contract.errors import RedisUnavailable

logger = logging.getLogger(__name__)

CRASH_EXIT_STATUS: Final = 70


class LoopThread(threading.Thread):
    """Runs ``loop`` until it returns. If ``loop`` raises, the process exits.

    A worker that has lost one of its threads would keep its jobs and its lease without making progress. A
    worker that exits loses its lease, and another worker continues its jobs.
    """

    def __init__(self, name: str, loop: Callable[[], None]) -> None:
        super().__init__(name=f"pagefleet-{name}", daemon=True)
        self._loop = loop

    def run(self) -> None:
        self._name_for_system()
        try:
            self._loop()
        except RedisUnavailable as error:
            # Retries are only limited during shutdown. The jobs are recovered when the lease expires.
            logger.warning("thread %s ends because Redis is unavailable: %s", self.name, error)
        # BaseException: a panic in a library's Rust code is not an Exception.
        except BaseException:
            logger.critical("thread %s failed", self.name, exc_info=True)
            exit_process(f"thread {self.name} failed, and a worker cannot make progress without it")

    def _name_for_system(self) -> None:
        """Show the name in `top -H`, which has room for 15 characters. Python sets it only since 3.14."""
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(
                self.name.removeprefix("pagefleet-")[:15]
            )


def exit_process(reason: str) -> NoReturn:
    """Exit at once with :data:`CRASH_EXIT_STATUS`. Cleanup could block on what has failed."""
    logger.critical("the worker exits: %s", reason)
    logging.shutdown()
    os._exit(CRASH_EXIT_STATUS)
