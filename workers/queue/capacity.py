"""Capacity: whether the worker may take another message, and from which lane."""

from __future__ import annotations

from typing import Final

from pagefleet.api.contract.keys import Lane
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

    def room(self, num_held: int, num_batch: int) -> dict[Lane, int]:
        """Return how many more messages may be taken from each lane, interactive first (protocol line 3).

        Without messages there is room for one, even if its blocks are not free.

        Args:
            num_held: sequences of the messages that are taken and not settled yet.
            num_batch: how many of them are batch work.
        """
        num_free = self._engine.num_free_blocks
        blocks_per_seq = self._engine.num_required_blocks(_RESERVE_TOKENS)
        num_not_running = max(0, num_held - self._engine.stats().num_running)
        num_reserved = self._max_num_seqs // _INTERACTIVE_SHARE
        at_least = int(num_held == 0)
        num_fitting = max(at_least, num_free // blocks_per_seq - num_not_running)
        interactive = max(0, min(self._max_num_seqs - num_held, num_fitting))
        num_seats = self._max_num_seqs - num_reserved - num_batch
        num_fitting = max(at_least, num_fitting - num_reserved)
        return {"interactive": interactive, "batch": max(0, min(interactive, num_seats, num_fitting))}
