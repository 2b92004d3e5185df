"""SchedulerOutput: the sequences that a step computes, and how many tokens of each."""

from __future__ import annotations

from typing import NamedTuple

from pagefleet.engine.core.sequence import Sequence

__all__ = ["ScheduledSequence", "SchedulerOutput"]


class ScheduledSequence(NamedTuple):
    """A sequence in a step: the step computes `num_new_tokens` (>= 1) tokens from `num_computed_tokens` on.

    known    [ ............................ )
                                            num_tokens
    step              [ num_new_tokens .............. )
                      num_computed_tokens     drafts
    """

    sequence: Sequence
    num_new_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether the step computes the last known token, so that the next one can be sampled."""
        return self._end >= self.sequence.num_tokens

    @property
    def draft_token_ids(self) -> list[int]:
        """The draft tokens that the step computes too."""
        return self.sequence.draft_token_ids[: max(0, self._end - self.sequence.num_tokens)]

    @property
    def _end(self) -> int:
        return self.sequence.num_computed_tokens + self.num_new_tokens


class SchedulerOutput(NamedTuple):
    """One step, as the scheduler decided it."""

    scheduled: list[ScheduledSequence]
    preempted: list[Sequence]
    """Sequences that lost their blocks and wait again; a later step recomputes them."""
    first_prefills: list[Sequence]
    """Sequences without output tokens that are scheduled for the first time on this engine."""
    unconfirmed: list[Sequence]
    """Waiting sequences that the step has room for but does not compute, because they are not confirmed."""
