"""What a stream's source delivers: the events of a job, as they were published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

MAX_UNREAD: Final = 1024
"""Events that one stream may leave unread. The log has them all, and a slower reader reads it instead."""


class LiveEvent(NamedTuple):
    """One line of a channel."""

    kind: str
    body: str


class Resync:
    """Events may have been missed: the subscription is new, or the inbox was full. Read the log."""


Deliver = Callable[[LiveEvent | Resync], None]
"""Receives the events of one job for one stream."""
