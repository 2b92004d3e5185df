"""StepInput: one step as arrays, for executors. StepInputs makes them from the batch table.

No loop runs over sequences or tokens, except over guests: sequences that need more than the table's
columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable, Slots
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.execution.prompt_rows import PromptRows, add_prompt_rows
from pagefleet.engine.execution.token_masks import GrammarRow
from pagefleet.engine.execution.verification import SampledRows, row_rules, sampled_rows
from pagefleet.engine.sampling.sampling_batch import RowRules, SamplingBatch

__all__ = ["Guests", "StepInput", "StepInputs"]

Indices = NDArray[np.int64]


@dataclass(slots=True)
class Guests:
    """What the sequences of a step need besides numbers; empty in most steps."""

    sequences: list[Sequence] = field(default_factory=list)
    """All sequences of the step."""
    rules: list[RowRules] = field(default_factory=list)
    grammar_rows: list[GrammarRow] = field(default_factory=list)
    num_logprobs: dict[int, int] = field(default_factory=dict)
    """How many of the most likely tokens to return, by sampled row."""
    prompts: PromptRows = field(default_factory=lambda: PromptRows([], [], [], {}))
    """The rows that prompt logprobs need."""


class _Carried(NamedTuple):
    """Tokens that the previous step samples: they are not known when this step is made."""

    places: Indices
    """Their places among the token ids of this step."""
    rows: Indices
    """The sampled rows of the step before that have them."""


@dataclass(slots=True)
class StepInput:
    """One step of S sequences, T tokens end to end, and R sampled rows."""

    table: BatchTable
    slots: Slots
    """[S]"""
    token_ids: Indices
    """[T]; 0 for carried tokens until `carry` has filled them in."""
    query_lens: Indices
    """[S]: tokens of each sequence in this step, at least 1, drafts included."""
    context_lens: Indices
    """[S]: tokens of each sequence whose K/V are in the cache."""
    rows: SampledRows
    batch: SamplingBatch
    """[R]: the sampling parameters of each sampled row, without its rules."""
    draft_token_ids: Indices
    """The drafts of all sequences, end to end."""
    carried: _Carried | None = None
    guests: Guests = field(default_factory=Guests)
    kept_blocks: NDArray[np.int32] | None = None
    """The block tables when the step was submitted; None if they are read when it is computed."""

    def __len__(self) -> int:
        return len(self.slots)

    def block_tables(self, block_size: int) -> NDArray[np.int32]:
        """Return [groups, S, blocks]: the blocks of each sequence, as many as the longest one has."""
        if self.kept_blocks is not None:
            return self.kept_blocks
        num_blocks = -(-int((self.context_lens + self.query_lens).max()) // block_size)
        blocks: NDArray[np.int32] = self.table.block_tables[:, self.slots, :num_blocks]
        return blocks

    def keep_blocks(self) -> None:
        """Copy the block tables: until the step is computed, another sequence may get one of its slots."""
        self.kept_blocks = self.block_tables(self.table.block_size)

    def carry(self, token_ids: Indices) -> None:
        """Fill in the carried tokens, given those that the step before sampled."""
        if self.carried is not None:
            self.token_ids[self.carried.places] = token_ids[self.carried.rows]

    def without_guests(self) -> StepInput:
        """Return what another process needs to compute the step: numbers only."""
        return replace(self, guests=Guests())


class StepInputs:
    """Makes the inputs of the steps of one batch table, in the order in which they are computed."""

    def __init__(self, table: BatchTable) -> None:
        self._table = table
        # The sampled row of each slot in the step made last; -1 if it has none.
        self._last_rows = np.full(len(table.serial), -1, dtype=np.int64)

    def make(self, step: SchedulerOutput) -> StepInput:
        """Return the input of a step that is about to be booked."""
        table, slots = self._table, step.slots
        query_lens, context_lens = step.num_new_tokens.astype(np.int64), step.num_computed.astype(np.int64)
        num_drafts = np.zeros(len(step), dtype=np.int64)
        for index, drafts in step.drafts.items():
            num_drafts[index] = len(drafts)
        rows = sampled_rows(query_lens, num_drafts, step.is_sampled)
        drafts = [token_id for index in sorted(step.drafts) for token_id in step.drafts[index]]
        found = StepInput(
            table,
            slots,
            self._token_ids(step),
            query_lens,
            context_lens,
            rows,
            self._batch(step, rows, num_drafts),
            np.array(drafts, dtype=np.int64),
            self._carried(step, query_lens),
            self._guests(step, rows),
        )
        if len(drafts):
            found.token_ids[_draft_places(query_lens, num_drafts)] = found.draft_token_ids
        self._last_rows.fill(-1)
        self._last_rows[slots[rows.entries]] = np.arange(len(rows.entries))
        return found

    def _token_ids(self, step: SchedulerOutput) -> Indices:
        table, lens = self._table.token_ids, step.num_new_tokens
        if step.num_tokens == len(step):
            rows, columns = step.slots, step.num_computed
        else:
            starts = np.cumsum(lens) - lens
            rows = np.repeat(step.slots, lens)
            columns = np.repeat(step.num_computed - starts, lens) + np.arange(step.num_tokens)
        token_ids: Indices = table[rows, columns].astype(np.int64)
        return token_ids

    def _batch(self, step: SchedulerOutput, rows: SampledRows, num_drafts: Indices) -> SamplingBatch:
        table, slots = self._table, step.slots[rows.entries]
        num_known = step.num_computed + step.num_new_tokens - num_drafts
        position = (num_known - step.num_prompt_tokens)[rows.entries] + rows.num_drafts
        return SamplingBatch(
            temperature=table.temperature[slots],
            top_k=table.top_k[slots],
            top_p=table.top_p[slots],
            min_p=table.min_p[slots],
            typical_p=table.typical_p[slots],
            seed=table.seed[slots],
            choice=table.choice[slots],
            position=position,
        )

    def _carried(self, step: SchedulerOutput, query_lens: Indices) -> _Carried | None:
        is_carried = self._table.num_booked[step.slots] > 0
        if not is_carried.any():
            return None
        rows = self._last_rows[step.slots[is_carried]]
        assert (rows >= 0).all(), "a booked token that the step before does not sample"
        return _Carried((np.cumsum(query_lens) - 1)[is_carried], rows)

    def _guests(self, step: SchedulerOutput, rows: SampledRows) -> Guests:
        guests = Guests(step.sequences)
        is_guest = self._table.is_guest[step.slots]
        if not is_guest.any():
            return guests
        first_tokens = np.cumsum(step.num_new_tokens) - step.num_new_tokens
        first_rows = dict(zip(rows.entries[::-1].tolist(), range(len(rows.entries) - 1, -1, -1), strict=True))
        for index in np.flatnonzero(is_guest).tolist():
            sequence, drafts = step.sequences[index], step.drafts.get(index, [])
            num_computed, num_new = int(step.num_computed[index]), int(step.num_new_tokens[index])
            add_prompt_rows(
                guests.prompts,
                index,
                sequence,
                range(num_computed, num_computed + num_new),
                int(first_tokens[index]),
            )
            if index not in first_rows:
                continue
            row, params = first_rows[index], sequence.sampling_params
            guests.rules += row_rules(row, sequence, drafts)
            if sequence.grammar is not None:
                guests.grammar_rows.append(GrammarRow(row, sequence, drafts))
            if params.logprobs is not None:
                guests.num_logprobs |= dict.fromkeys(range(row, row + 1 + len(drafts)), params.logprobs)
        return guests


def _draft_places(query_lens: Indices, num_drafts: Indices) -> Indices:
    """Return the places of all drafts among the tokens of a step: they are the last of their sequence."""
    ends = np.cumsum(query_lens)
    places = [
        np.arange(int(ends[index] - num_drafts[index]), int(ends[index]))
        for index in np.flatnonzero(num_drafts).tolist()
    ]
    return np.concatenate(places)
