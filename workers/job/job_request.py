"""JobRequest: Celery's request of a job, whose events say more and which waits for nothing in memory."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

from celery.worker.request import Request

_ENDS: Final = ("task-failed", "task-revoked")


class JobRequest(Request):  # type: ignore[misc]
    """Named by the task (``Task.Request``), which is Celery's way to have one of one's own.

    Celery would keep a message with an ETA in this process's memory, and acknowledge one that has expired,
    also where its job runs already: both are taken away from it, and SUBMIT writes them down.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: dict[str, Any] = {}
        """What ``task-started`` says beside what Celery does."""
        self.not_before, self.start_by = _seconds(self.eta), _seconds(self.expires)
        self._eta: None = None
        self._expires: None = None

    def send_event(self, type: str, **fields: Any) -> None:
        if type == "task-started":
            fields |= self.told
        elif type in _ENDS and self.time_start:
            # Celery tells a runtime of what succeeded alone.
            fields["runtime"] = time.time() - self.time_start
        super().send_event(type, **fields)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
