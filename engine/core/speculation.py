"""Speculation: adds draft tokens to a scheduled step, for speculative decoding.

Drafts are added after all sequences are scheduled. They use only what remains of the token budget and of the
free blocks, and give their blocks back after the step. So they never delay or preempt a sequence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from copy import copy
from typing import Final

import numpy as np

from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence

__all__ = ["Speculation"]

logger = logging.getLogger(__name__)

_NUM_FREE_TOKENS: Final = 20
"""Tokens that a step could compute in the time that it needs to read the weights: 20 to 35 were measured with
SmolLM2-135M on two cores. An accelerator has more; a value that is too small gives up some of the gain."""


_MAX_INDEXED_TOKENS: Final = 4096
"""Prompt tokens that proposers index in one step, in all: about 10 ms."""
_MAX_WRONG_DRAFTS: Final = 64
"""Rejected drafts after which a sequence with a grammar gets none any more: each uses lexer memory that the
text may need, and the lexer has a limit (ops/decisions/0010-structured-output.md)."""


class Speculation:
    """Adds drafts to the steps of one engine, as long as they are worth their cost.

    Args:
        max_num_drafts: the largest number per sequence and step; 0 turns speculation off.
        max_num_seqs: the largest number of rows that a step samples, with drafts, unless one sequence alone
            needs more: the memory for logits was measured for this number.
    """

    def __init__(self, block_manager: BlockManager, max_num_drafts: int, max_num_seqs: int) -> None:
        self._block_manager = block_manager
        self._max_num_drafts = max_num_drafts
        self._max_num_rows = max(max_num_seqs, max_num_drafts + 1)

    def add_drafts(self, step: SchedulerOutput, num_tokens_left: int) -> None:
        """Add drafts to the step and allocate blocks for them."""
        if not self._max_num_drafts:
            return
        estimate = _StepEstimate(step)
        num_tokens_left = min(num_tokens_left, self._max_num_rows - estimate.num_sampled)
        table = step.table
        is_booked = table.num_booked[step.slots] > 0
        for index in np.flatnonzero(step.is_sampled).tolist():
            sequence = step.sequences[index]
            if sequence.proposer is None:
                continue
            if is_booked[index]:
                # What follows the booked token is not known. If there would be a draft without it, the
                # sequence waits for it before the next step.
                would_draft = self._draft_or_disable(sequence, num_tokens_left, copy(estimate))
                table.may_draft[sequence.slot] = bool(would_draft)
                continue
            drafts = self._draft_or_disable(sequence, num_tokens_left, estimate)
            table.may_draft[sequence.slot] = bool(drafts)
            if drafts:
                has_grown = self._block_manager.grow(sequence, sequence.num_tokens + len(drafts))
                assert has_grown, sequence.request_id
                step.add_drafts(index, drafts)
                num_tokens_left -= len(drafts)

    def _draft_or_disable(
        self, sequence: Sequence, num_tokens_left: int, estimate: _StepEstimate
    ) -> list[int]:
        """Return the draft of a sequence; after an error, disable speculation for it and return []."""
        try:
            return self._draft(sequence, num_tokens_left, estimate)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            # An error of the grammar, which is a library, costs this sequence only its drafts. Not `except
            # Exception`: a panic in its Rust code is a BaseException.
            logger.exception("request %s: speculative decoding is off after this error", sequence.request_id)
            sequence.proposer = None
            return []

    def _draft(self, sequence: Sequence, num_tokens_left: int, estimate: _StepEstimate) -> list[int]:
        proposer, grammar, token_ids = sequence.proposer, sequence.grammar, sequence.token_ids
        max_num_drafts = self._max_num_drafts_of(sequence, num_tokens_left)
        if proposer is None or max_num_drafts <= 0:
            return []
        if grammar is not None and sequence.num_wrong_drafts >= _MAX_WRONG_DRAFTS:
            return []
        estimate.num_tokens_to_index -= proposer.index_prompt(token_ids, estimate.num_tokens_to_index)
        if not proposer.has_indexed_prompt:
            return []
        drafted, probabilities = proposer.propose(token_ids, max_num_drafts)
        drafted = drafted[: estimate.add_worthwhile(probabilities)]
        if grammar is not None and drafted:
            num_valid = grammar.num_valid(drafted)
            sequence.num_wrong_drafts += len(drafted) - num_valid
            drafted = drafted[:num_valid]
        return drafted

    def _max_num_drafts_of(self, sequence: Sequence, num_tokens_left: int) -> int:
        return min(
            self._max_num_drafts,
            num_tokens_left,
            self._block_manager.max_num_tokens(sequence) - sequence.num_tokens,
            # The step also samples the token after the drafts.
            sequence.max_num_tokens - sequence.num_tokens - 1,
        )


class _StepEstimate:
    """The estimated cost of a step, in tokens, and the number of tokens that it is expected to find."""

    def __init__(self, step: SchedulerOutput) -> None:
        self._cost: float = _NUM_FREE_TOKENS + step.num_tokens
        self.num_sampled = int(step.is_sampled.sum())
        self._num_expected_tokens: float = self.num_sampled
        self.num_tokens_to_index = _MAX_INDEXED_TOKENS

    def add_worthwhile(self, probabilities: Iterable[float]) -> int:
        """Add the drafts that raise the tokens found per cost; return how many of them.

        `probabilities` are those that the draft and all before it are accepted, in order.
        """
        num_added = 0
        for probability in probabilities:
            if probability * self._cost <= self._num_expected_tokens:
                break
            self._cost += 1
            self._num_expected_tokens += probability
            num_added += 1
        return num_added
