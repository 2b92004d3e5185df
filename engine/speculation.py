"""Speculation: which guesses a step computes beside the tokens that are known.

Drafts are guests: they come when everybody has been seated, take what is left of the token budget and blocks
that are free, and leave with the step. They never cost anybody blocks, a seat or a preemption.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from pagefleet.engine.block_manager import BlockManager
from pagefleet.engine.sequence import Sequence

if TYPE_CHECKING:
    from pagefleet.engine.scheduler import ScheduledSequence

__all__ = ["Speculation", "num_agreed"]

_NUM_FREE_TOKENS: Final = 20
"""Tokens that a step could compute in the time it takes anyway, to read the weights: measured 20 to 35 with
SmolLM2-135M on two cores. An accelerator has more of them; too few leave some of the gain."""


def num_agreed(sampled: Collection[int], drafted: Collection[int]) -> int:
    """How many of the sampled tokens count: those that were drafted, and the first that was not."""
    for index, (token_id, draft) in enumerate(zip(sampled, drafted, strict=False)):
        if token_id != draft:
            return index + 1
    return len(sampled)


class Speculation:
    """One engine's.

    Args:
        max_num_drafts: of one sequence in one step; 0 is off.
    """

    def __init__(self, block_manager: BlockManager, max_num_drafts: int) -> None:
        self._block_manager = block_manager
        self._max_num_drafts = max_num_drafts

    def invite(self, scheduled: list[ScheduledSequence], num_tokens_left: int) -> None:
        """Give sequences of a step `draft_token_ids`, blocks for them, and their places in the step."""
        if not self._max_num_drafts:
            return
        load = _Load(scheduled)
        for index, entry in enumerate(scheduled):
            if not entry.is_sampled:
                continue
            sequence = entry.sequence
            sequence.draft_token_ids = self._draft(sequence, num_tokens_left, load)
            if num_drafts := len(sequence.draft_token_ids):
                has_grown = self._block_manager.append(sequence, sequence.num_tokens + num_drafts)
                assert has_grown, sequence.request_id
                scheduled[index] = entry._replace(num_new_tokens=entry.num_new_tokens + num_drafts)
                num_tokens_left -= num_drafts

    def take_leave(self, sequence: Sequence) -> None:
        """Give back the blocks that only drafts were in; their step is over."""
        self._block_manager.trim(sequence, sequence.num_computed_tokens)

    def _draft(self, sequence: Sequence, num_tokens_left: int, load: _Load) -> list[int]:
        manager = self._block_manager
        num_slots = (len(sequence.block_table) + manager.num_free_blocks) * manager.block_size
        most = min(
            self._max_num_drafts,
            num_tokens_left,
            num_slots - sequence.num_tokens,
            # The token after the drafts is found too.
            sequence.max_num_tokens - sequence.num_tokens - 1,
        )
        if sequence.proposer is None or most <= 0:
            return []
        drafted, chances = sequence.proposer.propose(sequence.token_ids, most)
        if sequence.grammar is not None:
            chances = chances[: sequence.grammar.num_valid(drafted)]
        return drafted[: load.take(chances)]


class _Load:
    """A step as it fills: what it costs, in tokens, and how many it will find, on the average."""

    def __init__(self, scheduled: list[ScheduledSequence]) -> None:
        self._cost: float = _NUM_FREE_TOKENS + sum(entry.num_new_tokens for entry in scheduled)
        self._num_found: float = sum(entry.is_sampled for entry in scheduled)

    def take(self, chances: Iterable[float]) -> int:
        """How many of these guesses are worth it: the step finds more tokens a second with them."""
        num_taken = 0
        for chance in chances:
            if chance * self._cost <= self._num_found:
                break
            self._cost += 1
            self._num_found += chance
            num_taken += 1
        return num_taken
