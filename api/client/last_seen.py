"""LastSeen: whether a job that the server does not have was lost, or has expired or been deleted."""

from __future__ import annotations

import time
from typing import Final

from pagefleet.api.client.events import Deliver, LiveEvent, Resync
from pagefleet.api.contract.messages import ENDED
from pagefleet.api.protocol.job_record import JobRecord

RESUBMIT_AFTER_S: Final = 0.2
"""Events that were published before the job was missed may still arrive within this time."""


class LastSeen:
    """What the producer of a job knows of it, including events that its stream has not read yet.

    A job that has ended may expire or be deleted. A job that has not ended is only missing if the server was
    restarted without its data, and is then submitted again. The server's answer is the same in both cases.

    Args:
        ttl_s: for how long an ended job is kept. After a longer time without events, a missing job may have
            expired.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._ended = False
        self._at = time.monotonic()

    def recording(self, deliver: Deliver) -> Deliver:
        """Return ``deliver`` with a note of each event. The result holds a reference to no other object."""

        def record(event: LiveEvent | Resync) -> None:
            self._at = time.monotonic()
            if isinstance(event, LiveEvent) and event.kind == ENDED:
                self._ended = True
            deliver(event)

        return record

    def read(self, record: JobRecord | None) -> None:
        """Note what the server has returned for the job."""
        if record is not None:
            self._at = time.monotonic()
            self._ended = self._ended or record.state.is_final

    @property
    def was_lost(self) -> bool:
        """Whether the server must have lost the job, if it does not have it now."""
        return not self._ended and time.monotonic() - self._at <= self._ttl_s
