"""Scheduler: decides which sequences the next step computes, and how many tokens of each.

Does not know tensors or text, nor why a sequence ends: the engine calls `finish`.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from itertools import takewhile
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable, Slots
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.bookings import Bookings
from pagefleet.engine.core.scheduler_output import SchedulerOutput, StepBuilder
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.core.speculation import Speculation
from pagefleet.engine.core.step_budget import StepCost
from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.outputs import FinishReason

__all__ = ["Scheduler"]

_MAX_MODEL_LEN: Final = 8192
"""The longest sequence, in tokens, of a scheduler that makes its own table."""


class Scheduler:
    """Distributes the token budget of each step over the sequences, with continuous batching.

    There is no prefill phase and no decode phase. Every sequence has `num_tokens` known tokens, of which
    `num_computed_tokens` are computed, and a step computes some of the others: one token (decode), all of
    them or a chunk (a prompt, with or without a prefix cache hit), or again from 0 (after a preemption or a
    takeover). This is the algorithm of vLLM's v1 scheduler.

    Order: running before waiting sequences; each by priority, then by arrival. Waiting sequences do not
    overtake each other, so small requests cannot starve a large one. If blocks run out, the running sequence
    with the lowest priority that arrived last is preempted: it loses its blocks and waits again, at the
    position of its arrival. The first sequence in this order can get all blocks, and `add` ensures that it
    fits alone, so each step makes progress and every sequence ends. A waiting sequence preempts only running
    ones of strictly lower priority, and only if this frees enough for it.

    If the budget is less than one token per running sequence, sequences of the same priority take turns: the
    least recently computed go first, so none gets a second turn before all others have had one.

    If a running sequence is about to compute the next block of a waiting one, the waiting sequence waits for
    it, so that concurrent requests compute a common prefix once. Only in this case others of its priority
    may overtake it.

    A sequence that is not confirmed is admitted like the others, but not computed: the step reports it, and
    afterwards it waits again without blocks. It has used its share of the step's blocks and budget, so the
    sequences behind it do not overtake it, and all that the step has room for are reported together. It
    preempts no running sequence before it is confirmed.

    What remains of the budget is used for draft tokens (speculation.py).
    """

    def __init__(
        self,
        block_manager: BlockManager,
        max_num_seqs: int,
        token_budget: int,
        max_num_drafts: int = 0,
        cost: StepCost | None = None,
        table: BatchTable | None = None,
    ) -> None:
        assert max_num_seqs >= 1, max_num_seqs
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.token_budget = token_budget
        self.table = table or BatchTable(
            max_num_seqs, _MAX_MODEL_LEN, block_manager.num_groups, block_manager.block_size
        )
        self.bookings = Bookings(self.table, block_manager)
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self._speculation = Speculation(block_manager, max_num_drafts, max_num_seqs)
        self._cost = cost or StepCost()
        self._num_arrivals = 0
        self._num_turns = 0
        # Both are sorted by _priority_key.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        # The slots of `_running`, in its order; None after it changed.
        self._slots: Slots | None = None
        # Running sequences that no step has computed yet.
        self._new: list[Sequence] = []

    @property
    def token_budget(self) -> int:
        """The largest cost of a step, in tokens; a token with a long context costs more than one (StepCost).

        Running sequences take turns if it is less than one token per sequence.
        """
        return self._token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        if value < 1:
            raise ValueError(f"token_budget must be at least 1, not {value}.")
        self._token_budget = value

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_waste(self) -> float:
        """The share of the slots in used blocks that have no token, 0 to 1: the unused ends of last blocks.

        Can be read from any thread; exact between two steps.
        """
        block_size = self.block_manager.block_size
        num_used = self.block_manager.num_used_slots
        num_unused = sum(
            max(0, len(table.block_ids) * block_size - sequence.num_tokens)
            for sequence in list(self._running)
            for table in sequence.block_tables
        )
        return num_unused / num_used if num_used else 0.0

    @property
    def has_unfinished_sequences(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence, max_num_tokens: int) -> None:
        """Add a sequence to the waiting ones; it has at most `max_num_tokens` tokens, prompt and output.

        Raises InvalidRequestError with code "exceeds_capacity" if the KV cache cannot hold this many.
        """
        # The last token is not an input of the model: its K/V are not stored.
        if not self.block_manager.can_ever_fit(max_num_tokens - 1):
            num_slots = self.block_manager.num_blocks * self.block_manager.block_size
            raise InvalidRequestError(
                f"Prompt and max_tokens need {max_num_tokens} tokens of KV cache, which has {num_slots}: "
                "lower max_tokens or shorten the prompt.",
                "exceeds_capacity",
                "max_tokens",
            )
        assert sequence.status is SequenceStatus.WAITING, sequence.status
        sequence.max_num_tokens = max_num_tokens
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        insort(self._waiting, sequence, key=_priority_key)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a waiting or running sequence; its blocks are free at once.

        A step in flight may still write to them: steps are computed in order, so it does that before any
        step that uses them again."""
        assert sequence.status is not SequenceStatus.FINISHED, sequence.request_id
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def abort(self, sequence: Sequence) -> None:
        """End a sequence that the caller has cancelled."""
        self.finish(sequence, FinishReason.ABORT)

    def preempt_all(self) -> None:
        """Preempt all running sequences and reset the prefix cache, before the KV cache is dropped. No step
        may be in flight."""
        builder = StepBuilder()
        while self._running:
            self._preempt_last(builder)
        self.block_manager.reset_prefix_cache()

    def schedule(self) -> SchedulerOutput:
        """Return the next step and allocate its blocks. Nothing else changes until it is booked."""
        builder = StepBuilder()
        self._preempt_for_urgent(builder)
        self._admit_urgent(builder)
        num_tokens_left = self._schedule_running(builder)
        num_tokens_left = self._schedule_waiting(builder, num_tokens_left)
        self._withdraw_unconfirmed(builder)
        output = builder.build(self.table)
        if self._new:
            self._count_first_admissions(output)
        self._speculation.add_drafts(output, num_tokens_left)
        return output

    def reschedule(self, output: SchedulerOutput) -> SchedulerOutput:
        """Return the next step instead of `output`, which is not computed."""
        for index in output.drafts:
            sequence = output.sequences[index]
            if sequence.status is SequenceStatus.RUNNING:
                self.block_manager.shrink(sequence, sequence.num_tokens)
        again = self.schedule()
        again.first_prefills[:0] = output.first_prefills
        return again

    def check_integrity(self) -> None:
        """Assert the invariants that hold between steps."""
        self.block_manager.check_integrity(self._running)
        assert len(self._running) <= self.max_num_seqs
        assert self._slots is None or self._slots.tolist() == [each.slot for each in self._running]
        for line, status in (
            (self._waiting, SequenceStatus.WAITING),
            (self._running, SequenceStatus.RUNNING),
        ):
            assert line == sorted(line, key=_priority_key)
            assert all(sequence.status is status for sequence in line)
        assert not any(sequence.block_tables for sequence in self._waiting)

    def _preempt_for_urgent(self, builder: StepBuilder) -> None:
        """Preempt running sequences of lower priority if the first waiting one fits then.

        Nothing is preempted if all of them together would not free enough. Called before anything is
        scheduled, so that no victim is already part of the step.
        """
        if not self._waiting or not self._running:
            return
        urgent = self._waiting[0]
        if (
            urgent.priority <= self._running[-1].priority
            or urgent.is_in_flight
            or self.block_manager.is_prefix_pending(urgent)
            or self._has_room_for(urgent)
        ):
            return
        victims = takewhile(
            lambda sequence: sequence.priority < urgent.priority, reversed(list(self._running))
        )
        num_victims = self.block_manager.num_victims(urgent, victims, num_reserved=len(self._running))
        if num_victims and not urgent.is_confirmed:
            builder.unconfirmed.append(urgent)
            return
        for _ in range(num_victims):
            self._preempt_last(builder)

    def _admit_urgent(self, builder: StepBuilder) -> None:
        """Admit waiting sequences of higher priority than a running one, so that they get their tokens
        first."""
        if self._running:
            for _ in self._admit(builder, above=self._running[-1].priority):
                pass

    def _schedule_running(self, builder: StepBuilder) -> int:
        """Schedule the running sequences in their order; return the tokens left of the budget."""
        running = self._schedulable()
        if self._token_budget < len(running.sequences):
            return self._schedule_turns(builder, running.sequences)
        # In most steps most sequences need one token and no block. A loop runs over the others only.
        table, slots = self.table, running.slots
        is_full = table.num_computed[slots] >= table.num_slots[slots]
        if is_full.any() and running.num_left.max() == 1:
            is_full = self._append_blocks(running, is_full)
        counts, costs = np.ones((2, len(slots)), dtype=np.int32)
        num_running, num_spent = len(slots), 0
        for index in np.flatnonzero(is_full | (running.num_left > 1)).tolist():
            sequence, num_later = running.sequences[index], num_running - index - 1
            if sequence.status is not SequenceStatus.RUNNING:
                # It was preempted for a sequence before it, with all sequences behind it.
                break
            # A chunk of a prompt leaves a token for each later sequence, so that their streams do not stall.
            max_cost = max(1, self._token_budget - index - num_spent - num_later)
            num_left = int(running.num_left[index])
            count, cost = self._next_chunk(sequence, num_left, max_cost, num_later)
            if not self._allocate(sequence, sequence.num_computed_tokens + count, builder):
                count = cost = 0
            counts[index], costs[index] = count, cost
            # Beyond one token for each sequence.
            num_spent += cost - 1
            if index + 1 + num_spent >= self._token_budget:
                # A chunk may cost more than was left: the others come in the next step.
                num_running = index + 1
                break
        sequences, slots = running.sequences[:num_running], slots[:num_running]
        counts, costs = counts[:num_running], costs[:num_running]
        if builder.preempted or not counts.all():
            kept = [
                index
                for index, sequence in enumerate(sequences)
                if sequence.status is SequenceStatus.RUNNING and counts[index]
            ]
            sequences, slots = [sequences[index] for index in kept], slots[kept]
            counts, costs = counts[kept], costs[kept]
        builder.add_all(sequences, slots, counts)
        return max(0, self._token_budget - int(costs.sum()))

    def _append_blocks(self, running: _Schedulable, is_full: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Allocate a block for each sequence that needs one for its next token; return which still do."""
        full = np.flatnonzero(is_full)
        block_ids = self.block_manager.append_blocks([running.sequences[index] for index in full.tolist()])
        if block_ids is None:
            return is_full
        table, slots, block_size = self.table, running.slots[full], self.block_manager.block_size
        table.block_tables[0, slots, table.num_slots[slots] // block_size] = block_ids
        table.num_slots[slots] += block_size
        return np.zeros_like(is_full)

    def _schedule_turns(self, builder: StepBuilder, running: list[Sequence]) -> int:
        """Schedule as many sequences as the budget has tokens, those first that were computed longest ago."""
        num_tokens_left, num_later = self._token_budget, len(running)
        # A prompt that got one token per turn would hardly advance.
        max_chunk = num_tokens_left // 2
        for sequence in sorted(running, key=_turn_key):
            if num_tokens_left == 0:
                break
            num_later -= 1
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            max_cost = max(1, min(max_chunk, num_tokens_left), num_tokens_left - num_later)
            num_new_tokens, cost = self._next_chunk(sequence, self._num_left(sequence), max_cost, num_later)
            if self._allocate(sequence, sequence.num_computed_tokens + num_new_tokens, builder):
                builder.add(sequence, num_new_tokens)
                num_tokens_left = max(0, num_tokens_left - cost)
                self._record_turn(sequence)
        return num_tokens_left

    def _schedulable(self) -> _Schedulable:
        """Return the running sequences that the next step may compute, in their order.

        Without a step in flight, these are all. A sequence that waits for its token has nothing to compute;
        one whose booked token is its last has nothing more to compute."""
        table = self.table
        if self._slots is None:
            self._slots = np.fromiter((each.slot for each in self._running), np.int32, len(self._running))
        slots = self._slots
        num_known = table.num_tokens[slots] + table.num_booked[slots]
        num_left = num_known - table.num_computed[slots]
        if not self.bookings.num_in_flight:
            return _Schedulable(self._running.copy(), slots, num_left)
        is_booked = table.num_booked[slots] > 0
        has_ended = num_known >= table.max_num_tokens[slots]
        ready = (num_left > 0) & ~(is_booked & (has_ended | table.may_draft[slots]))
        chosen = np.flatnonzero(ready)
        return _Schedulable(
            [self._running[index] for index in chosen.tolist()], slots[chosen], num_left[chosen]
        )

    def _schedule_waiting(self, builder: StepBuilder, num_tokens_left: int) -> int:
        """Admit and schedule waiting sequences; return the tokens left of the budget."""
        admitted = self._admit(builder)
        while num_tokens_left > 0 and (sequence := next(admitted, None)) is not None:
            num_left, num_reserved = self._num_left(sequence), len(self._running)
            num_new_tokens, cost = self._next_chunk(sequence, num_left, num_tokens_left, num_reserved)
            fits = self._allocate(sequence, sequence.num_computed_tokens + num_new_tokens, builder)
            assert fits, sequence.request_id
            builder.add(sequence, num_new_tokens)
            num_tokens_left = max(0, num_tokens_left - cost)
        return num_tokens_left

    def _num_left(self, sequence: Sequence) -> int:
        """Return how many of its tokens, booked ones included, are not computed."""
        return sequence.num_tokens + int(self.table.num_booked[sequence.slot]) - sequence.num_computed_tokens

    def _next_chunk(
        self, sequence: Sequence, num_left: int, max_cost: int, num_reserved: int
    ) -> tuple[int, int]:
        """Return how many of its next `num_left` tokens cost at most `max_cost`, and their cost.

        A chunk does not preempt others: it has as many tokens, but at least one, as its blocks and the free
        ones without `num_reserved` can hold.
        """
        if num_left == 1:
            return 1, 1
        num_computed = sequence.num_computed_tokens
        num_slots = self.block_manager.max_num_tokens(sequence, num_reserved) - num_computed
        num_new_tokens = min(num_left, self._cost.max_num_tokens(max_cost, num_computed), max(1, num_slots))
        return num_new_tokens, self._cost.of(num_new_tokens, num_computed)

    def _allocate(self, sequence: Sequence, num_tokens: int, builder: StepBuilder) -> bool:
        """Allocate blocks for `num_tokens`, preempting later sequences if needed.

        Returns False if the sequence itself had to be preempted, or has to wait until a step in flight frees
        blocks behind its windows.
        """
        if num_tokens <= sequence.num_slots:
            return True
        while not self.block_manager.grow(sequence, num_tokens):
            if self.block_manager.has_windows and sequence.is_in_flight:
                return False
            if self._preempt_last(builder) is sequence:
                assert self._running, f"{sequence.request_id} has more tokens than its max_num_tokens"
                return False
        return True

    def _admit(self, builder: StepBuilder, above: float = -math.inf) -> Iterator[Sequence]:
        """Yield waiting sequences of a priority above `above`, in order; each is running when it is
        yielded."""
        index = 0
        # Skipped sequences are examined in every step: with thousands waiting, look at no more than can run.
        while index < min(len(self._waiting), self.max_num_seqs) and len(self._running) < self.max_num_seqs:
            sequence = self._waiting[index]
            # A sequence preempted in this step would only lose its blocks again. One that a step in flight
            # computes gets a token that is not known yet.
            if sequence in builder.preempted or sequence.is_in_flight:
                break
            if sequence.priority < self._waiting[0].priority:
                break
            if sequence.priority <= above:
                break
            if self.block_manager.is_prefix_pending(sequence):
                index += 1
            elif self._has_room_for(sequence):
                del self._waiting[index]
                self._enter(sequence)
                if not sequence.is_confirmed and sequence not in builder.unconfirmed:
                    builder.unconfirmed.append(sequence)
                yield sequence
            else:
                break

    def _enter(self, sequence: Sequence) -> None:
        """Give a waiting sequence a slot and blocks: it runs."""
        self.table.add(sequence)
        self.block_manager.allocate(sequence)
        sequence.status = SequenceStatus.RUNNING
        insort(self._running, sequence, key=_priority_key)
        self._slots = None
        self._record_turn(sequence)
        if not sequence.was_scheduled:
            self._new.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Free the slot and the blocks of a sequence that does not run any more."""
        self.block_manager.free(sequence)
        self.table.remove(sequence)
        self._slots = None
        if not sequence.was_scheduled:
            self._new.remove(sequence)

    def _record_turn(self, sequence: Sequence) -> None:
        """Move the sequence behind the others of its priority. Steps in which all have a turn change
        nothing."""
        self._num_turns += 1
        sequence.last_turn = self._num_turns

    def _has_room_for(self, sequence: Sequence) -> bool:
        """Return whether the batch has room, and blocks for all its tokens plus one for each running
        sequence.

        Without that reserve, it would take a block that a running sequence needs in the next step, and be
        preempted for it.
        """
        num_running = len(self._running)
        return num_running < self.max_num_seqs and self.block_manager.can_allocate(sequence, num_running)

    def _count_first_admissions(self, output: SchedulerOutput) -> None:
        for sequence in [each for each in self._new if each in output.sequences]:
            self._new.remove(sequence)
            sequence.was_scheduled = True
            sequence.num_cached_tokens = sequence.num_computed_tokens
            if self.block_manager.enable_prefix_caching and sequence.prefix_cache:
                self.prefix_cache_queries += sequence.num_tokens
                self.prefix_cache_hits += sequence.num_cached_tokens
            if sequence.num_output_tokens == 0:
                output.first_prefills.append(sequence)

    def _preempt_last(self, builder: StepBuilder) -> Sequence:
        sequence = self._running.pop()
        self._wait_again(sequence)
        self.num_preemptions += 1
        builder.preempted.append(sequence)
        builder.remove(sequence)
        return sequence

    def _withdraw_unconfirmed(self, builder: StepBuilder) -> None:
        """Let the unconfirmed sequences of the step wait again. Their blocks are free for the next step."""
        for sequence in builder.unconfirmed:
            if sequence.status is SequenceStatus.RUNNING:
                self._running.remove(sequence)
                self._wait_again(sequence)
                builder.remove(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self._waiting, sequence, key=_priority_key)


class _Schedulable(NamedTuple):
    """Running sequences that a step may compute, in their order."""

    sequences: list[Sequence]
    slots: Slots
    num_left: NDArray[np.int32]
    """How many tokens of each are not computed."""


def _priority_key(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival


def _turn_key(sequence: Sequence) -> tuple[int, int, int]:
    return -sequence.priority, sequence.last_turn, sequence.arrival
