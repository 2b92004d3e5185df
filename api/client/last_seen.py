"""LastSeen: whether a job that the server does not know was lost by it, or is gone as it should be."""

from __future__ import annotations

import time
from typing import Final

from pagefleet.api.client.subscriber import Deliver
from pagefleet.api.client.token_stream import LiveEvent, Resync
from pagefleet.api.contract.messages import ENDED
from pagefleet.api.protocol.job_record import JobRecord

RESUBMIT_AFTER_S: Final = 0.2


class LastSeen:
    """What the producer of a job has heard of it, also of events that nobody has read yet.

    A job that has ended may expire or be deleted; one that has not is only gone where a server was
    restarted without its data, and is then submitted again. Both look the same to who asks for it.

    Args:
        ttl_s: for how long an ended job is kept. Whoever heard nothing for longer cannot know.
    """

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._ended = False
        self._at = time.monotonic()

    def on_the_way_to(self, deliver: Deliver) -> Deliver:
        """Hears what is delivered, and keeps nobody alive but the receiver."""

        def hear(event: LiveEvent | Resync) -> None:
            self._at = time.monotonic()
            if isinstance(event, LiveEvent) and event.kind == ENDED:
                self._ended = True
            deliver(event)

        return hear

    def read(self, record: JobRecord | None) -> None:
        if record is not None:
            self._at = time.monotonic()
            self._ended = self._ended or record.state.is_final

    @property
    def was_lost(self) -> bool:
        return not self._ended and time.monotonic() - self._at <= self._ttl_s
