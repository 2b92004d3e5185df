"""Scheduler: which sequences the next step computes, and how many tokens of each.

Knows nothing of tensors, text or why a sequence ends: it is told.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile

from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler_output import ScheduledSequence, SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.core.speculation import Speculation
from pagefleet.engine.core.step_budget import StepCost
from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.outputs import FinishReason

__all__ = ["Scheduler"]


class Scheduler:
    """Hands out one token budget a step.

    There is no prefill phase and no decode phase. Every sequence has `num_tokens` known and
    `num_computed_tokens` done, and a step lets the second catch up with the first: all at once (a decode
    step is one token behind), in chunks (a long prompt), from a prefix hit, or again from 0 after a
    preemption or a takeover. All of it is the same sentence. (After vLLM's v1 scheduler.)

    Order: by priority, then by arrival, among the running and then among the waiting. Nobody overtakes
    within the waiting line, so a large request is not starved by small ones. When blocks run out, the
    running sequence of lowest priority that came last gives its blocks up and waits, at the place that its
    arrival gives it: the front of its class. The first in the order can take everybody's blocks and fits
    alone (`add` saw to it), so each step makes progress and every sequence ends. A waiting sequence takes
    seat and blocks only from running ones of strictly lower priority, and only if they are enough for it.

    A budget smaller than the number of running sequences goes round among those of one priority: the least
    recently computed go first, so none gets a second turn before each of the others has had one.

    A waiting sequence whose next block a running one is about to compute waits for that block: a prefix that
    many share is computed once, also when they come together. Only then others of its priority may pass it.

    What is left of the budget goes to guesses at what follows (speculation.py): the sentence holds with
    `num_tokens` and the drafts behind them.
    """

    def __init__(
        self,
        block_manager: BlockManager,
        max_num_seqs: int,
        token_budget: int,
        max_num_drafts: int = 0,
        cost: StepCost | None = None,
    ) -> None:
        assert max_num_seqs >= 1, max_num_seqs
        self.block_manager = block_manager
        self.max_num_seqs = max_num_seqs
        self.token_budget = token_budget
        self.num_preemptions = 0
        self.num_prompt_tokens_computed = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._speculation = Speculation(block_manager, max_num_drafts, max_num_seqs)
        self._cost = cost or StepCost()
        self._num_arrivals = 0
        self._num_turns = 0
        # Both sorted by _urgency.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def token_budget(self) -> int:
        """What a step may cost, in tokens: those of a long prompt cost more, behind many others.

        Running sequences take turns if it is less than one each.
        """
        return self._token_budget

    @token_budget.setter
    def token_budget(self, value: int) -> None:
        if value < 1:
            raise ValueError(f"token_budget must be at least 1, not {value}: no step would advance.")
        self._token_budget = value

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def kv_waste(self) -> float:
        """Of the slots in used blocks, the share that no token has been found for: ends of last blocks.

        May be asked from any thread; between two steps it is exact.
        """
        block_size = self.block_manager.block_size
        num_used = self.block_manager.num_blocks - self.block_manager.num_free_blocks
        num_unused = sum(
            max(0, len(sequence.block_table) * block_size - sequence.num_tokens)
            for sequence in list(self._running)
        )
        return num_unused / (num_used * block_size) if num_used else 0.0

    @property
    def has_unfinished_sequences(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence, max_num_tokens: int) -> None:
        """Put a sequence in line; it may grow to `max_num_tokens`, prompt and output.

        Raises InvalidRequestError with code "exceeds_capacity" where that could never fit.
        """
        if not self._can_ever_fit(max_num_tokens):
            num_slots = self.block_manager.num_blocks * self.block_manager.block_size
            raise InvalidRequestError(
                f"Prompt and max_tokens together may grow to {max_num_tokens} tokens, and the KV cache holds "
                f"{num_slots}: lower max_tokens or shorten the prompt.",
                "exceeds_capacity",
                "max_tokens",
            )
        assert sequence.status is SequenceStatus.WAITING, sequence.status
        sequence.max_num_tokens = max_num_tokens
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        insort(self._waiting, sequence, key=_urgency)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, in whatever state; its blocks are free at once."""
        assert sequence.status is not SequenceStatus.FINISHED, sequence.request_id
        line = self._running if sequence.status is SequenceStatus.RUNNING else self._waiting
        line.remove(sequence)
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def abort(self, sequence: Sequence) -> None:
        """End a sequence that nobody waits for any more."""
        self.finish(sequence, FinishReason.ABORT)

    def suspend(self) -> None:
        """Send every running sequence back to wait, because the KV cache is about to go."""
        output = SchedulerOutput([], [], [])
        while self._running:
            self._preempt_last(output)
        self.block_manager.forget()

    def schedule(self) -> SchedulerOutput:
        """Decide the next step. Blocks are assigned; nothing counts as computed before `update`."""
        output = SchedulerOutput([], [], [])
        self._yield_to_urgent(output)
        self._seat_urgent(output)
        num_tokens_left = self._schedule_running(output)
        num_tokens_left = self._admit_waiting(output, num_tokens_left)
        self._speculation.invite(output.scheduled, num_tokens_left)
        return output

    def update(self, output: SchedulerOutput, sampled: Iterable[Collection[int]]) -> None:
        """Book a step that was computed: the tokens found for each of `output.scheduled`.

        Sequences that were ended since they were scheduled are passed over.
        """
        block_size = self.block_manager.block_size
        for entry, token_ids in zip(output.scheduled, sampled, strict=True):
            sequence = entry.sequence
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            assert bool(token_ids) == entry.is_sampled, sequence.request_id
            num_drafts = len(entry.draft_token_ids)
            num_accepted = len(token_ids) - 1 if num_drafts else 0
            assert num_accepted <= num_drafts, sequence.request_id
            before = sequence.num_computed_tokens
            # Behind the drafts that came true, the K/V are those of another text: computed again.
            after = before + entry.num_new_tokens - num_drafts + num_accepted
            sequence.num_computed_tokens = after
            sequence.token_ids += token_ids
            if before < sequence.num_prompt_tokens:
                self.num_prompt_tokens_computed += min(after, sequence.num_prompt_tokens) - before
            if before // block_size != after // block_size:
                self.block_manager.register_computed(sequence, before)
            if num_drafts:
                self._speculation.take_leave(sequence)
                self.num_draft_tokens += num_drafts
                self.num_accepted_tokens += num_accepted
                sequence.num_wrong_drafts += num_drafts - num_accepted

    def check_integrity(self) -> None:
        """Assert what must hold between steps."""
        self.block_manager.check_integrity(self._running)
        assert len(self._running) <= self.max_num_seqs
        for line, status in (
            (self._waiting, SequenceStatus.WAITING),
            (self._running, SequenceStatus.RUNNING),
        ):
            assert line == sorted(line, key=_urgency)
            assert all(sequence.status is status for sequence in line)
        assert not any(sequence.block_table for sequence in self._waiting)

    def _can_ever_fit(self, num_tokens: int) -> bool:
        # The last token is never fed back: its K/V are not stored.
        return self.block_manager.num_required_blocks(num_tokens - 1) <= self.block_manager.num_blocks

    def _yield_to_urgent(self, output: SchedulerOutput) -> None:
        """Make room for the first in the waiting line, at the cost of lower priorities only.

        Nobody gives way if all of them together are not enough. Before anything is scheduled, so that no
        victim is in the step already.
        """
        if not self._waiting or not self._running:
            return
        urgent = self._waiting[0]
        if (
            urgent.priority <= self._running[-1].priority
            or self.block_manager.is_prefix_promised(urgent)
            or self._has_room_for(urgent)
        ):
            return
        victims = takewhile(
            lambda sequence: sequence.priority < urgent.priority, reversed(list(self._running))
        )
        for _ in range(self.block_manager.num_to_free(urgent, victims, num_spare=len(self._running))):
            self._preempt_last(output)

    def _seat_urgent(self, output: SchedulerOutput) -> None:
        """Seat those that are more urgent than a running sequence: they get their tokens before it does."""
        if self._running:
            for _ in self._seat_waiting(output, above=self._running[-1].priority):
                pass

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Schedule the running in their order; returns the tokens left of the budget."""
        num_tokens_left = self._token_budget
        num_later = len(self._running)
        takes_turns = num_tokens_left < num_later
        # A prompt among many streams: a token each turn would be next to nothing.
        longest = num_tokens_left // 2 if takes_turns else 1
        for sequence in sorted(self._running, key=_turn) if takes_turns else list(self._running):
            if num_tokens_left == 0:
                break
            num_later -= 1
            if sequence.status is not SequenceStatus.RUNNING:
                # It gave its blocks to one before it.
                continue
            num_new_tokens = cost = len(sequence.token_ids) - sequence.num_computed_tokens
            if num_new_tokens > 1:
                # A long chunk leaves a token for each one behind it: streams don't stall for a prompt.
                most = max(1, min(longest, num_tokens_left), num_tokens_left - num_later)
                num_new_tokens = min(num_new_tokens, self._cost.most(most, sequence.num_computed_tokens))
                cost = self._cost.of(num_new_tokens, sequence.num_computed_tokens)
            if self._grow(sequence, sequence.num_computed_tokens + num_new_tokens, output):
                self._put(sequence, num_new_tokens, output)
                num_tokens_left = max(0, num_tokens_left - cost)
                if takes_turns:
                    self._end_turn(sequence)
        return num_tokens_left

    def _grow(self, sequence: Sequence, num_tokens: int, output: SchedulerOutput) -> bool:
        """Blocks for `num_tokens`, at the cost of those behind; False where that preempted the sequence."""
        if num_tokens <= len(sequence.block_table) * self.block_manager.block_size:
            return True
        while not self.block_manager.append(sequence, num_tokens):
            if self._preempt_last(output) is sequence:
                assert self._running, f"{sequence.request_id} outgrew what it was added with"
                return False
        return True

    def _admit_waiting(self, output: SchedulerOutput, num_tokens_left: int) -> int:
        """Schedule the first of those who wait; returns the tokens left of the budget."""
        seated = self._seat_waiting(output)
        while num_tokens_left > 0 and (sequence := next(seated, None)) is not None:
            num_computed_tokens = sequence.num_computed_tokens
            most = self._cost.most(num_tokens_left, num_computed_tokens)
            num_new_tokens = min(sequence.num_tokens - num_computed_tokens, most)
            self._put(sequence, num_new_tokens, output)
            cost = self._cost.of(num_new_tokens, num_computed_tokens)
            num_tokens_left = max(0, num_tokens_left - cost)
        return num_tokens_left

    def _seat_waiting(self, output: SchedulerOutput, above: float = -math.inf) -> Iterator[Sequence]:
        """Seat those of the waiting whose priority is `above`, in their order, one each time it is asked."""
        index = 0
        # Each one that is passed over was looked at: with thousands in line, not more than could be seated.
        while index < min(len(self._waiting), self.max_num_seqs):
            sequence = self._waiting[index]
            # Who gave way in this step would only get blocks back to lose them again.
            if sequence in output.preempted or sequence.priority < self._waiting[0].priority:
                break
            if sequence.priority <= above:
                break
            if self.block_manager.is_prefix_promised(sequence):
                index += 1
            elif self._has_room_for(sequence):
                del self._waiting[index]
                self.block_manager.allocate(sequence)
                sequence.status = SequenceStatus.RUNNING
                insort(self._running, sequence, key=_urgency)
                self._end_turn(sequence)
                yield sequence
            else:
                break

    def _put(self, sequence: Sequence, num_new_tokens: int, output: SchedulerOutput) -> None:
        if not sequence.was_scheduled:
            self._count_first_admission(sequence, output)
        output.scheduled.append(ScheduledSequence(sequence, num_new_tokens))

    def _end_turn(self, sequence: Sequence) -> None:
        """The others of its priority come before its next one. A step in which all have a turn changes no
        order."""
        self._num_turns += 1
        sequence.last_turn = self._num_turns

    def _has_room_for(self, sequence: Sequence) -> bool:
        """A seat, blocks for every token known, and a block of growth for each one that runs already.

        Without the last, a newcomer would take the block that a running sequence needs in the next
        step, and be preempted for it.
        """
        num_running = len(self._running)
        return num_running < self.max_num_seqs and self.block_manager.can_allocate(sequence, num_running)

    def _count_first_admission(self, sequence: Sequence, output: SchedulerOutput) -> None:
        sequence.was_scheduled = True
        sequence.num_cached_tokens = sequence.num_computed_tokens
        if self.block_manager.enable_prefix_caching and sequence.prefix_cache:
            self.prefix_cache_queries += sequence.num_tokens
            self.prefix_cache_hits += sequence.num_cached_tokens
        if sequence.num_output_tokens == 0:
            output.first_prefills.append(sequence)

    def _preempt_last(self, output: SchedulerOutput) -> Sequence:
        sequence = self._running.pop()
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self._waiting, sequence, key=_urgency)
        self.num_preemptions += 1
        output.preempted.append(sequence)
        self._take_back(sequence, output)
        return sequence

    def _take_back(self, sequence: Sequence, output: SchedulerOutput) -> None:
        """Who comes last may have had its turn in this step before the one that takes its blocks."""
        output.scheduled[:] = [entry for entry in output.scheduled if entry.sequence is not sequence]
        if sequence in output.first_prefills:
            output.first_prefills.remove(sequence)
            sequence.was_scheduled = False


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival


def _turn(sequence: Sequence) -> tuple[int, int, int]:
    return -sequence.priority, sequence.last_turn, sequence.arrival
