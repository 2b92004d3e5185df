"""JobRequest: Celery's ``Request`` for jobs, with more fields in its events and without ETA handling."""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any, Final

from celery.worker.request import Request

logger = logging.getLogger(__name__)

_END_EVENTS: Final = ("task-failed", "task-revoked")


class JobRequest(Request):  # type: ignore[misc]
    """The task names it as ``Task.Request``, Celery's hook for a custom request class.

    Celery would keep a message with an ETA in this process's memory, and would acknowledge an expired one
    even if its job is already running. So both values are removed from the request here, and SUBMIT stores
    them in the job instead.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.started_fields: dict[str, Any] = {}
        """Fields of ``task-started`` in addition to Celery's."""
        self.not_before, self.start_by = _timestamp(self.eta), _timestamp(self.expires)
        self._eta: None = None
        self._expires: None = None

    def acknowledge(self) -> None:
        """Acknowledge now: Celery would do it in the next turn of its event loop, up to a second later."""
        if not self.acknowledged:
            self.message.ack_log_error(logger, self._connection_errors)
            self.acknowledged: bool = True

    def send_event(self, type: str, **fields: Any) -> None:
        if type == "task-started":
            fields |= self.started_fields
        elif type in _END_EVENTS and self.time_start:
            # Celery sends a runtime only with task-succeeded.
            fields["runtime"] = time.time() - self.time_start
        super().send_event(type, **fields)


def _timestamp(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
