"""Bookings: what a step changes in the batch table, when it starts and when its tokens come.

Between the two a step is in flight, and the next one can be scheduled. Its tokens are booked: they count
although they are not known yet.

    book      the step's tokens count as computed, and the next token of each sequence as booked
    commit    the booked tokens are known; full blocks can be found by others, blocks behind a window are free
    unbook    the step failed: as if it had never been booked

Guests (see BatchTable.is_guest) and sequences with drafts have no booked token: what follows it depends on
which token it is. They join the next step only after their tokens came.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus

__all__ = ["Bookings", "Found", "right_rows"]


@dataclass(slots=True)
class Found:
    """The tokens that a step found, sequence by sequence."""

    indices: NDArray[np.int64]
    """[N]: which sequences of the step got tokens; sequences that ended meanwhile got none."""
    num_known: NDArray[np.int32]
    """[N]: the tokens, prompt and output, that each had before."""
    token_ids: NDArray[np.int64]
    """The new tokens of all of them, end to end."""
    counts: NDArray[np.int64] | None = None
    """[N]: how many tokens each got; None if each got one."""


class Bookings:
    """Books the steps of one scheduler. Steps are committed in the order in which they were booked."""

    def __init__(self, table: BatchTable, block_manager: BlockManager) -> None:
        self._table = table
        self._block_manager = block_manager
        self.num_in_flight = 0
        self.num_prompt_tokens_computed = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0

    def book(self, step: SchedulerOutput) -> None:
        """Count the tokens of a step as computed. All of its sequences must run."""
        table, slots = self._table, step.slots
        table.num_computed[slots] += step.num_new_tokens
        table.num_in_flight[slots] += 1
        table.num_booked[slots] += self._is_booked(step)
        self.num_in_flight += 1

    def unbook(self, step: SchedulerOutput) -> None:
        """Forget a step that was booked. Later steps must have been forgotten before."""
        alive = self._end(step)
        slots = step.slots[alive]
        self._table.num_computed[slots] -= step.num_new_tokens[alive]
        self._table.num_booked[slots] -= self._is_booked(step)[alive]

    def commit(self, step: SchedulerOutput, token_ids: NDArray[np.int64]) -> Found:
        """Record the result of a step, and append the tokens that it found.

        Args:
            token_ids: for each sampled sequence, in order, the token sampled after its last known one, and
                one after each of its drafts.
        """
        alive = self._end(step)
        table, sampled = self._table, np.flatnonzero(step.is_sampled)
        table.num_booked[step.slots[alive]] -= self._is_booked(step)[alive]
        num_known = step.num_computed + step.num_new_tokens
        counts = None
        if step.drafts:
            token_ids, counts = self._verify(step, sampled, token_ids, num_known)
        found = Found(sampled, num_known[sampled], token_ids, counts)
        if not alive.all():
            found = self._keep_wanted(step, found, alive)
        is_alive = alive[found.indices]
        self._append(step.slots[found.indices[is_alive]], found, is_alive)
        self._advance(step, np.flatnonzero(alive), num_known)
        return found

    def _is_booked(self, step: SchedulerOutput) -> NDArray[np.bool_]:
        booked: NDArray[np.bool_] = step.is_sampled & ~self._table.is_guest[step.slots]
        if step.drafts:
            booked[list(step.drafts)] = False
        return booked

    def _end(self, step: SchedulerOutput) -> NDArray[np.bool_]:
        """Count a step as no longer in flight; return which of its sequences still run."""
        self.num_in_flight -= 1
        alive = step.is_alive
        self._table.num_in_flight[step.slots[alive]] -= 1
        if not alive.all():
            for index in np.flatnonzero(~alive).tolist():
                if _was_preempted_after(step, index):
                    step.sequences[index].num_in_flight -= 1
        return alive

    def _verify(
        self,
        step: SchedulerOutput,
        sampled: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        num_known: NDArray[np.int32],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Keep the tokens up to the first that differs from its draft; return them and how many each sequence
        has.

        Changes `num_known` of the sequences with drafts: drafts were never known.
        """
        num_drafts = np.zeros(len(step), dtype=np.int64)
        for index, drafts in step.drafts.items():
            num_drafts[index] = len(drafts)
        num_known -= num_drafts.astype(np.int32)
        drafts = [token_id for index in sorted(step.drafts) for token_id in step.drafts[index]]
        is_right = right_rows(num_drafts[sampled], token_ids, np.array(drafts, dtype=np.int64))
        num_rows = num_drafts[sampled] + 1
        firsts = np.cumsum(num_rows) - num_rows
        return token_ids[is_right], np.add.reduceat(is_right, firsts, dtype=np.int64)

    def _keep_wanted(self, step: SchedulerOutput, found: Found, alive: NDArray[np.bool_]) -> Found:
        """Drop the tokens of sequences that ended, and append those of preempted ones, which wait."""
        starts = None if found.counts is None else np.cumsum(found.counts) - found.counts
        is_wanted = alive[found.indices]
        for place in np.flatnonzero(~is_wanted).tolist():
            index = int(found.indices[place])
            if _was_preempted_after(step, index):
                start = place if starts is None else int(starts[place])
                count = 1 if found.counts is None else int(found.counts[place])
                step.sequences[index].append(found.token_ids[start : start + count])
                is_wanted[place] = True
        counts = None if found.counts is None else found.counts[is_wanted]
        is_token_wanted = is_wanted if found.counts is None else np.repeat(is_wanted, found.counts)
        return Found(
            found.indices[is_wanted], found.num_known[is_wanted], found.token_ids[is_token_wanted], counts
        )

    def _append(self, slots: NDArray[np.int32], found: Found, is_alive: NDArray[np.bool_]) -> None:
        """Write the tokens of running sequences to the table."""
        table = self._table
        if found.counts is None:
            table.token_ids[slots, found.num_known[is_alive]] = found.token_ids[is_alive]
            table.num_tokens[slots] += 1
            return
        counts = found.counts[is_alive]
        starts = np.cumsum(counts) - counts
        rows = np.repeat(slots, counts)
        columns = np.repeat(found.num_known[is_alive] - starts, counts) + np.arange(len(rows))
        table.token_ids[rows, columns] = found.token_ids[np.repeat(is_alive, found.counts)]
        table.num_tokens[slots] += counts.astype(np.int32)

    def _advance(self, step: SchedulerOutput, alive: NDArray[np.int64], num_known: NDArray[np.int32]) -> None:
        """Cache full blocks, free passed ones and those of rejected drafts, and count."""
        before = step.num_computed
        after = before + step.num_new_tokens
        if step.drafts:
            after = self._release_drafts(step, after, num_known)
        computed = np.minimum(after[alive], step.num_prompt_tokens[alive]) - before[alive]
        self.num_prompt_tokens_computed += int(np.maximum(computed, 0).sum())
        block_size = self._block_manager.block_size
        is_full = before[alive] // block_size != after[alive] // block_size
        full = alive[is_full]
        if self._block_manager.has_windows or (after[full] - before[full] > 1).any():
            for index in full.tolist():
                self._block_manager.advance(step.sequences[index], int(before[index]), int(after[index]))
        elif len(full):
            self._cache_blocks(step, full)

    def _cache_blocks(self, step: SchedulerOutput, full: NDArray[np.int64]) -> None:
        """Cache the blocks of sequences of which the step computed the last token of a block."""
        block_size = self._block_manager.block_size
        starts = step.num_computed[full] + 1 - block_size
        columns = starts[:, None] + np.arange(block_size)
        packed = self._table.token_ids[step.slots[full][:, None], columns].astype("<i4").tobytes()
        num_bytes = 4 * block_size
        places = (starts // block_size).tolist()
        for number, (index, place) in enumerate(zip(full.tolist(), places, strict=True)):
            tokens = packed[number * num_bytes : (number + 1) * num_bytes]
            self._block_manager.cache_block(step.sequences[index], place, tokens)

    def _release_drafts(
        self, step: SchedulerOutput, after: NDArray[np.int32], num_known: NDArray[np.int32]
    ) -> NDArray[np.int32]:
        """Take back what the rejected drafts of running sequences use; return the tokens computed after it.

        The K/V of rejected drafts belong to a different text: they do not count as computed.
        """
        after = after.copy()
        for index, drafts in step.drafts.items():
            sequence = step.sequences[index]
            is_running = self._table.serial[step.slots[index]] == step.serials[index]
            if not is_running:
                continue
            num_accepted = sequence.num_tokens - int(num_known[index]) - 1
            num_wrong = len(drafts) - num_accepted
            after[index] -= num_wrong
            sequence.num_computed_tokens -= num_wrong
            self._block_manager.shrink(sequence, sequence.num_computed_tokens)
            self.num_draft_tokens += len(drafts)
            self.num_accepted_tokens += num_accepted
            sequence.num_wrong_drafts += num_wrong
        return after


def right_rows(
    num_drafts: NDArray[np.int64], token_ids: NDArray[np.int64], drafts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return for each sampled row whether its token belongs to its sequence: no draft before it is wrong.

    Args:
        num_drafts: of each sampled sequence, which has one more row.
        token_ids: the sampled tokens of all rows.
        drafts: the drafts of all sequences, end to end.
    """
    num_rows = num_drafts + 1
    ends = np.cumsum(num_rows)
    # Each row but the last of its sequence verifies a draft.
    verifies = np.ones(len(token_ids), dtype=np.bool_)
    verifies[ends - 1] = False
    is_wrong = np.zeros(len(token_ids), dtype=np.int64)
    is_wrong[verifies] = token_ids[verifies] != drafts
    num_wrong_before = np.cumsum(is_wrong) - is_wrong
    is_right: NDArray[np.bool_] = num_wrong_before == np.repeat(num_wrong_before[ends - num_rows], num_rows)
    return is_right


def _was_preempted_after(step: SchedulerOutput, index: int) -> bool:
    """Return whether a sequence waits that was preempted while this step was in flight."""
    sequence: Sequence = step.sequences[index]
    is_waiting = sequence.status is SequenceStatus.WAITING
    return is_waiting and sequence.last_serial == int(step.serials[index])
