"""Speculation: which guesses a step computes beside the tokens that are known.

Drafts are guests: they come when everybody has been seated, take what is left of the token budget and blocks
that are free, and leave with the step. They never cost anybody blocks, a seat or a preemption.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Final

from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.sequence import Sequence

__all__ = ["Speculation", "num_agreed"]

logger = logging.getLogger(__name__)

_NUM_FREE_TOKENS: Final = 20
"""Tokens that a step could compute in the time it takes anyway, to read the weights: measured 20 to 35 with
SmolLM2-135M on two cores. An accelerator has more of them; too few leave some of the gain."""


_MAX_READ: Final = 4096
"""Tokens of prompts that proposers take note of in one step: some 10 ms."""
_MAX_WRONG: Final = 64
"""Wrong guesses after which a text with a grammar has no more of them: each costs its lexer memory that the
text itself may need, and the lexer has a limit (decision 0010)."""


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
        max_num_seqs: what a step samples at most, drafts included, unless one sequence alone takes more: the
            memory that the logits may take is known for that.
    """

    def __init__(self, block_manager: BlockManager, max_num_drafts: int, max_num_seqs: int) -> None:
        self._block_manager = block_manager
        self._max_num_drafts = max_num_drafts
        self._max_num_rows = max(max_num_seqs, max_num_drafts + 1)

    def invite(self, scheduled: list[ScheduledSequence], num_tokens_left: int) -> None:
        """Give sequences of a step `draft_token_ids`, blocks for them, and their places in the step."""
        if not self._max_num_drafts:
            return
        load = _Load(scheduled)
        num_tokens_left = min(num_tokens_left, self._max_num_rows - load.num_sampled)
        for index, entry in enumerate(scheduled):
            if not entry.is_sampled:
                continue
            sequence = entry.sequence
            try:
                sequence.draft_token_ids = self._draft(sequence, num_tokens_left, load)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                # A grammar is not ours: what it throws at guesses costs this sequence guesses alone. A panic
                # of its Rust code is no Exception.
                logger.exception("request %s: nothing is guessed any more", sequence.request_id)
                sequence.proposer, sequence.draft_token_ids = None, []
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
        proposer, grammar = sequence.proposer, sequence.grammar
        if proposer is None or most <= 0 or (grammar is not None and sequence.num_wrong_drafts >= _MAX_WRONG):
            return []
        load.num_to_read -= proposer.read_prompt(sequence.token_ids, load.num_to_read)
        if not proposer.has_read_prompt:
            return []
        drafted, chances = proposer.propose(sequence.token_ids, most)
        drafted = drafted[: load.take(chances)]
        if grammar is not None and drafted:
            num_valid = grammar.num_valid(drafted)
            sequence.num_wrong_drafts += len(drafted) - num_valid
            drafted = drafted[:num_valid]
        return drafted


class _Load:
    """A step as it fills: what it costs, in tokens, and how many it will find, on the average."""

    def __init__(self, scheduled: list[ScheduledSequence]) -> None:
        self._cost: float = _NUM_FREE_TOKENS + sum(entry.num_new_tokens for entry in scheduled)
        self.num_sampled = sum(entry.is_sampled for entry in scheduled)
        self._num_found: float = self.num_sampled
        self.num_to_read = _MAX_READ

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
