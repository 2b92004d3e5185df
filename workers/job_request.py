"""JobRequest: Celery's request of a job, whose events say more."""

from __future__ import annotations

import time
from typing import Any, Final

from celery.worker.request import Request

_ENDS: Final = ("task-failed", "task-revoked")


class JobRequest(Request):  # type: ignore[misc]
    """Named by the task (``Task.Request``), which is Celery's way to have one of one's own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.told: dict[str, Any] = {}
        """What ``task-started`` says beside what Celery does."""

    def send_event(self, type: str, **fields: Any) -> None:
        if type == "task-started":
            fields |= self.told
        elif type in _ENDS and self.time_start:
            # Celery tells a runtime of what succeeded alone.
            fields["runtime"] = time.time() - self.time_start
        super().send_event(type, **fields)
