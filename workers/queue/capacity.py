"""Capacity: whether the worker may take another message, and from which lane."""

from __future__ import annotations

from typing import Final

from pagefleet.api.contract.keys import LANES, Lane
from pagefleet.engine import LLMEngine

_RESERVE_TOKENS: Final = 256
"""KV cache tokens to reserve for a message whose request has not been read yet."""
_INTERACTIVE_SHARE: Final = 8


class Capacity:
    """The capacity of one engine in sequences and KV blocks.

    An eighth of the sequences, and blocks for them, is reserved for interactive work, so that batch work
    cannot fill the engine.

    Args:
        max_num_seqs: sequences in the batch at once.
    """

    def __init__(self, engine: LLMEngine, max_num_seqs: int) -> None:
        self._engine = engine
        self._max_num_seqs = max_num_seqs

    def lanes_with_room(self, num_held: int, num_batch: int) -> list[Lane]:
        """Return the lanes from which one more message may be taken, interactive first (protocol line 3).

        Args:
            num_held: sequences of the messages that are taken and not settled yet.
            num_batch: how many of them are batch work.
        """
        num_free = self._engine.num_free_blocks
        blocks_per_seq = self._engine.num_required_blocks(_RESERVE_TOKENS)
        num_not_running = max(0, num_held - self._engine.stats().num_running)
        num_needed = (num_not_running + 1) * blocks_per_seq
        if num_held >= self._max_num_seqs or not (num_free >= num_needed or num_held == 0):
            return []
        num_reserved = self._max_num_seqs // _INTERACTIVE_SHARE
        has_blocks = num_free >= num_needed + num_reserved * blocks_per_seq or num_held == 0
        if num_batch < self._max_num_seqs - num_reserved and has_blocks:
            return list(LANES)
        return ["interactive"]
