"""What the scheduler decides: which sequences a step computes, and how many tokens of each."""

from __future__ import annotations

from typing import NamedTuple

from pagefleet.engine.core.sequence import Sequence

__all__ = ["ScheduledSequence", "SchedulerOutput"]


class ScheduledSequence(NamedTuple):
    """A sequence and how many of its tokens, from `num_computed_tokens` on, the step computes (>= 1).

    known    [ ............................ )
                                            num_tokens
    step              [ num_new_tokens .............. )
                      num_computed_tokens     drafts
    """

    sequence: Sequence
    num_new_tokens: int

    @property
    def is_sampled(self) -> bool:
        """Whether the step comes to the last token that is known, and finds what follows."""
        return self._end >= self.sequence.num_tokens

    @property
    def draft_token_ids(self) -> list[int]:
        """The guesses at what follows that the step computes too."""
        return self.sequence.draft_token_ids[: max(0, self._end - self.sequence.num_tokens)]

    @property
    def _end(self) -> int:
        return self.sequence.num_computed_tokens + self.num_new_tokens


class SchedulerOutput(NamedTuple):
    """One step."""

    scheduled: list[ScheduledSequence]
    preempted: list[Sequence]
    """Sent back to wait, their blocks given up; a later step computes them again."""
    first_prefills: list[Sequence]
    """Scheduled for the first time on this engine, without any output token."""
