"""SchedulerOutput: the sequences that a step computes, as arrays. StepBuilder: makes one."""

from __future__ import annotations

from collections.abc import Sequence as Entries
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable, Slots
from pagefleet.engine.core.sequence import Sequence

__all__ = ["ScheduledSequence", "SchedulerOutput", "StepBuilder"]


class ScheduledSequence(NamedTuple):
    """A sequence in a step: the step computes `num_new_tokens` (>= 1) tokens from `num_computed_tokens` on.

    known    [ ............................ )
                                            num_tokens
    step              [ num_new_tokens .............. )
                      num_computed_tokens     drafts
    """

    sequence: Sequence
    num_new_tokens: int
    num_computed_tokens: int
    is_sampled: bool
    """Whether the step computes the last known token, so that the next one can be sampled."""
    draft_token_ids: list[int]
    """The draft tokens that the step computes too."""


@dataclass(slots=True)
class SchedulerOutput:
    """One step, as the scheduler decided it: S sequences, in any order."""

    table: BatchTable
    sequences: list[Sequence]
    slots: Slots
    """[S]: their slots in the batch table."""
    num_new_tokens: NDArray[np.int32]
    """[S]: tokens to compute, at least 1, drafts included."""
    num_computed: NDArray[np.int32]
    """[S]: tokens computed before the step."""
    is_sampled: NDArray[np.bool_]
    """[S]: whether the step computes the last known token, so that the next one is sampled."""
    num_prompt_tokens: NDArray[np.int32]
    """[S]"""
    serials: NDArray[np.int64]
    """[S]: the serials of the slots; a slot with a different serial has lost this sequence."""
    drafts: dict[int, list[int]] = field(default_factory=dict)
    """Draft tokens, by the index of their sequence; most sequences have none."""
    preempted: list[Sequence] = field(default_factory=list)
    """Sequences that lost their blocks and wait again; a later step recomputes them."""
    first_prefills: list[Sequence] = field(default_factory=list)
    """Sequences without output tokens that are scheduled for the first time on this engine."""
    unconfirmed: list[Sequence] = field(default_factory=list)
    """Waiting sequences that the step has room for but does not compute, because they are not confirmed."""

    @classmethod
    def of(
        cls, table: BatchTable, sequences: list[Sequence], slots: Slots, num_new_tokens: NDArray[np.int32]
    ) -> SchedulerOutput:
        """Return the step that computes the next `num_new_tokens` known tokens of these sequences."""
        num_computed = table.num_computed[slots]
        num_known = table.num_tokens[slots] + table.num_booked[slots]
        is_sampled = num_computed + num_new_tokens >= num_known
        num_prompt_tokens, serials = table.num_prompt_tokens[slots], table.serial[slots]
        return cls(
            table, sequences, slots, num_new_tokens, num_computed, is_sampled, num_prompt_tokens, serials
        )

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return int(self.num_new_tokens.sum())

    @property
    def is_alive(self) -> NDArray[np.bool_]:
        """[S]: whether the sequence still runs, and was not preempted since."""
        alive: NDArray[np.bool_] = self.table.serial[self.slots] == self.serials
        return alive

    @property
    def scheduled(self) -> list[ScheduledSequence]:
        """The sequences one by one, for readers that are not part of each step."""
        return [
            ScheduledSequence(
                sequence,
                int(self.num_new_tokens[index]),
                int(self.num_computed[index]),
                bool(self.is_sampled[index]),
                self.drafts.get(index, []),
            )
            for index, sequence in enumerate(self.sequences)
        ]

    def add_drafts(self, index: int, token_ids: list[int]) -> None:
        """Compute these draft tokens after the last known token of a sequence."""
        self.drafts[index] = token_ids
        self.num_new_tokens[index] += len(token_ids)

    def select(self, indices: Entries[int] | NDArray[np.int64]) -> SchedulerOutput:
        """Return the step with these sequences only."""
        chosen = np.asarray(indices, dtype=np.int64)
        places = {old: new for new, old in enumerate(chosen.tolist())} if self.drafts else {}
        return SchedulerOutput(
            self.table,
            [self.sequences[index] for index in chosen.tolist()],
            self.slots[chosen],
            self.num_new_tokens[chosen],
            self.num_computed[chosen],
            self.is_sampled[chosen],
            self.num_prompt_tokens[chosen],
            self.serials[chosen],
            {places[old]: drafts for old, drafts in self.drafts.items() if old in places},
        )


class StepBuilder:
    """The parts of a step that is being scheduled."""

    def __init__(self) -> None:
        self.preempted: list[Sequence] = []
        self.unconfirmed: list[Sequence] = []
        self._sequences: list[Sequence] = []
        self._slots: list[Slots] = []
        self._counts: list[NDArray[np.int32]] = []

    def add_all(self, sequences: list[Sequence], slots: Slots, counts: NDArray[np.int32]) -> None:
        self._sequences += sequences
        self._slots.append(slots)
        self._counts.append(counts)

    def add(self, sequence: Sequence, num_new_tokens: int) -> None:
        one = np.array([sequence.slot, num_new_tokens], dtype=np.int32)
        self.add_all([sequence], one[:1], one[1:])

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that does not run any more, if its turn came before."""
        if sequence in self._sequences:
            index = self._sequences.index(sequence)
            del self._sequences[index]
            self._slots = [np.delete(np.concatenate(self._slots), index)]
            self._counts = [np.delete(np.concatenate(self._counts), index)]

    def build(self, table: BatchTable) -> SchedulerOutput:
        empty = np.empty(0, dtype=np.int32)
        slots = np.concatenate(self._slots) if len(self._slots) > 1 else (self._slots or [empty])[0]
        counts = np.concatenate(self._counts) if len(self._counts) > 1 else (self._counts or [empty])[0]
        output = SchedulerOutput.of(table, self._sequences, slots, counts)
        output.preempted, output.unconfirmed = self.preempted, self.unconfirmed
        return output
