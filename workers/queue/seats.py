"""Seats: whether one more message may be taken, and of which lane."""

from __future__ import annotations

from typing import Final

from pagefleet.api.contract.keys import LANES, Lane
from pagefleet.engine import LLMEngine

_RESERVE_TOKENS: Final = 256
"""What a message that was not looked at yet is assumed to need, at least, of the KV cache."""
_RESERVED_SHARE: Final = 8


class Seats:
    """The room of one engine, in sequences and KV blocks.

    Batch leaves an eighth of the seats, and blocks for them, to interactive work, so that it never waits for
    a seat while others are taken.

    Args:
        num_seats: sequences in the batch at once.
    """

    def __init__(self, engine: LLMEngine, num_seats: int) -> None:
        self._engine = engine
        self._num_seats = num_seats

    def lanes_with_room(self, num_held: int, num_batch: int) -> list[Lane]:
        """The lanes of which one more message may be taken, the most urgent first (protocol line 3).

        Args:
            num_held: messages taken and not answered yet.
            num_batch: how many of them are batch work.
        """
        num_free = self._engine.num_free_blocks
        a_seat = self._engine.num_required_blocks(_RESERVE_TOKENS)
        needed = (max(0, num_held - self._engine.stats().num_running) + 1) * a_seat
        if num_held >= self._num_seats or not (num_free >= needed or num_held == 0):
            return []
        num_reserved = self._num_seats // _RESERVED_SHARE
        has_blocks = num_free >= needed + num_reserved * a_seat or num_held == 0
        if num_batch < self._num_seats - num_reserved and has_blocks:
            return list(LANES)
        return ["interactive"]
