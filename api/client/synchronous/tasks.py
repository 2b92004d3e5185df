"""Tasks: the interface of AsyncTasks, without an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pagefleet.api.contract.errors import FleetError

P = ParamSpec("P")
T = TypeVar("T")

Undo = Callable[[BaseException | None], None]


class Tasks:
    """Runs work in the caller's thread."""

    def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return call(*args, **kwargs)

    def finish(self, work: Callable[[], T]) -> T:
        return work()

    def finish_or_undo(self, work: Callable[[], T], undo: Undo) -> T:
        """Return what ``work`` returns.

        Args:
            undo: called if the work is interrupted by Ctrl-C, or by a time limit that a signal enforces, as
                Celery's ``SoftTimeLimitExceeded``. The work itself raises only FleetErrors.
        """
        try:
            return work()
        except FleetError:
            raise
        except BaseException:
            undo(None)
            raise

    def call_later(self, after_s: float, call: Callable[[], None]) -> None:
        """Call this after some time, in another thread, unless the process ends before."""
        timer = threading.Timer(after_s, call)
        timer.daemon = True
        timer.start()

    def wait(self) -> None:
        """All work has ended."""
