"""Scheduler: decides which sequences the next step computes, and how many tokens of each.

Does not know tensors or text, nor why a sequence ends: the engine calls `finish`.
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
        # Both are sorted by _priority_key.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

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
        """End a waiting or running sequence; its blocks are free at once."""
        assert sequence.status is not SequenceStatus.FINISHED, sequence.request_id
        line = self._running if sequence.status is SequenceStatus.RUNNING else self._waiting
        line.remove(sequence)
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.FINISHED
        sequence.finish_reason = reason

    def abort(self, sequence: Sequence) -> None:
        """End a sequence that the caller has cancelled."""
        self.finish(sequence, FinishReason.ABORT)

    def preempt_all(self) -> None:
        """Preempt all running sequences and reset the prefix cache, before the KV cache is dropped."""
        output = SchedulerOutput([], [], [], [])
        while self._running:
            self._preempt_last(output)
        self.block_manager.reset_prefix_cache()

    def schedule(self) -> SchedulerOutput:
        """Return the next step and allocate its blocks. Its tokens count as computed after `update`."""
        output = SchedulerOutput([], [], [], [])
        self._preempt_for_urgent(output)
        self._admit_urgent(output)
        num_tokens_left = self._schedule_running(output)
        num_tokens_left = self._schedule_waiting(output, num_tokens_left)
        self._speculation.add_drafts(output.scheduled, num_tokens_left)
        self._withdraw_unconfirmed(output)
        return output

    def reschedule(self, output: SchedulerOutput) -> SchedulerOutput:
        """Return the next step instead of `output`, which is not computed."""
        for sequence, _ in output.scheduled:
            if sequence.draft_token_ids and sequence.status is SequenceStatus.RUNNING:
                self.block_manager.shrink(sequence, sequence.num_tokens)
                sequence.draft_token_ids = []
        again = self.schedule()
        again.first_prefills[:0] = output.first_prefills
        return again

    def update(self, output: SchedulerOutput, sampled: Iterable[Collection[int]]) -> None:
        """Record that a step was computed, with the tokens sampled for each of `output.scheduled`.

        Sequences that ended after they were scheduled are skipped.
        """
        for entry, token_ids in zip(output.scheduled, sampled, strict=True):
            if entry.sequence.status is SequenceStatus.RUNNING:
                self._update_sequence(entry, token_ids)

    def check_integrity(self) -> None:
        """Assert the invariants that hold between steps."""
        self.block_manager.check_integrity(self._running)
        assert len(self._running) <= self.max_num_seqs
        for line, status in (
            (self._waiting, SequenceStatus.WAITING),
            (self._running, SequenceStatus.RUNNING),
        ):
            assert line == sorted(line, key=_priority_key)
            assert all(sequence.status is status for sequence in line)
        assert not any(sequence.block_tables for sequence in self._waiting)

    def _update_sequence(self, entry: ScheduledSequence, token_ids: Collection[int]) -> None:
        sequence, block_size = entry.sequence, self.block_manager.block_size
        assert bool(token_ids) == entry.is_sampled, sequence.request_id
        num_drafts = len(entry.draft_token_ids)
        num_accepted = len(token_ids) - 1 if num_drafts else 0
        assert num_accepted <= num_drafts, sequence.request_id
        before = sequence.num_computed_tokens
        # The K/V of rejected drafts belong to a different text: they do not count as computed.
        after = before + entry.num_new_tokens - num_drafts + num_accepted
        sequence.num_computed_tokens = after
        sequence.token_ids += token_ids
        if before < sequence.num_prompt_tokens:
            self.num_prompt_tokens_computed += min(after, sequence.num_prompt_tokens) - before
        if before // block_size != after // block_size:
            self.block_manager.advance(sequence, before)
        if num_drafts:
            self._speculation.release_blocks(sequence)
            self.num_draft_tokens += num_drafts
            self.num_accepted_tokens += num_accepted
            sequence.num_wrong_drafts += num_drafts - num_accepted

    def _preempt_for_urgent(self, output: SchedulerOutput) -> None:
        """Preempt running sequences of lower priority if the first waiting one fits then.

        Nothing is preempted if all of them together would not free enough. Called before anything is
        scheduled, so that no victim is already part of the step.
        """
        if not self._waiting or not self._running:
            return
        urgent = self._waiting[0]
        if (
            urgent.priority <= self._running[-1].priority
            or self.block_manager.is_prefix_pending(urgent)
            or self._has_room_for(urgent)
        ):
            return
        victims = takewhile(
            lambda sequence: sequence.priority < urgent.priority, reversed(list(self._running))
        )
        num_victims = self.block_manager.num_victims(urgent, victims, num_reserved=len(self._running))
        if num_victims and not urgent.is_confirmed:
            output.unconfirmed.append(urgent)
            return
        for _ in range(num_victims):
            self._preempt_last(output)

    def _admit_urgent(self, output: SchedulerOutput) -> None:
        """Admit waiting sequences of higher priority than a running one, so that they get their tokens
        first."""
        if self._running:
            for _ in self._admit(output, above=self._running[-1].priority):
                pass

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Schedule the running sequences in their order; return the tokens left of the budget."""
        num_tokens_left = self._token_budget
        num_later = len(self._running)
        takes_turns = num_tokens_left < num_later
        # A budget below one token per sequence: a prompt that got one token per turn would hardly advance.
        max_chunk = num_tokens_left // 2 if takes_turns else 1
        for sequence in sorted(self._running, key=_turn_key) if takes_turns else list(self._running):
            if num_tokens_left == 0:
                break
            num_later -= 1
            if sequence.status is not SequenceStatus.RUNNING:
                # It was preempted for a sequence before it.
                continue
            # A chunk of a prompt leaves a token for each later sequence, so that their streams do not stall.
            max_cost = max(1, min(max_chunk, num_tokens_left), num_tokens_left - num_later)
            num_new_tokens, cost = self._next_chunk(sequence, max_cost, num_later)
            num_tokens = sequence.num_computed_tokens + num_new_tokens
            if num_tokens <= sequence.num_slots or self._allocate(sequence, num_tokens, output):
                self._add(sequence, num_new_tokens, output)
                num_tokens_left = max(0, num_tokens_left - cost)
                if takes_turns:
                    self._record_turn(sequence)
        return num_tokens_left

    def _schedule_waiting(self, output: SchedulerOutput, num_tokens_left: int) -> int:
        """Admit and schedule waiting sequences; return the tokens left of the budget."""
        admitted = self._admit(output)
        while num_tokens_left > 0 and (sequence := next(admitted, None)) is not None:
            num_new_tokens, cost = self._next_chunk(sequence, num_tokens_left, len(self._running))
            fits = self._allocate(sequence, sequence.num_computed_tokens + num_new_tokens, output)
            assert fits, sequence.request_id
            self._add(sequence, num_new_tokens, output)
            num_tokens_left = max(0, num_tokens_left - cost)
        return num_tokens_left

    def _next_chunk(self, sequence: Sequence, max_cost: int, num_reserved: int) -> tuple[int, int]:
        """Return how many of its next tokens cost at most `max_cost`, and their cost.

        A chunk does not preempt others: it has as many tokens, but at least one, as its blocks and the free
        ones without `num_reserved` can hold.
        """
        num_new_tokens = len(sequence.token_ids) - sequence.num_computed_tokens
        if num_new_tokens == 1:
            return 1, 1
        num_slots = self.block_manager.max_num_tokens(sequence, num_reserved) - sequence.num_computed_tokens
        num_new_tokens = min(
            num_new_tokens,
            self._cost.max_num_tokens(max_cost, sequence.num_computed_tokens),
            max(1, num_slots),
        )
        return num_new_tokens, self._cost.of(num_new_tokens, sequence.num_computed_tokens)

    def _allocate(self, sequence: Sequence, num_tokens: int, output: SchedulerOutput) -> bool:
        """Allocate blocks for `num_tokens`, preempting later sequences if needed.

        Returns False if the sequence itself had to be preempted.
        """
        while not self.block_manager.grow(sequence, num_tokens):
            if self._preempt_last(output) is sequence:
                assert self._running, f"{sequence.request_id} has more tokens than its max_num_tokens"
                return False
        return True

    def _admit(self, output: SchedulerOutput, above: float = -math.inf) -> Iterator[Sequence]:
        """Yield waiting sequences of a priority above `above`, in order; each is running when it is
        yielded."""
        index = 0
        # Skipped sequences are examined in every step: with thousands waiting, look at no more than can run.
        while index < min(len(self._waiting), self.max_num_seqs):
            sequence = self._waiting[index]
            # A sequence preempted in this step would only lose its blocks again.
            if sequence in output.preempted or sequence.priority < self._waiting[0].priority:
                break
            if sequence.priority <= above:
                break
            if self.block_manager.is_prefix_pending(sequence):
                index += 1
            elif self._has_room_for(sequence):
                del self._waiting[index]
                self.block_manager.allocate(sequence)
                sequence.status = SequenceStatus.RUNNING
                insort(self._running, sequence, key=_priority_key)
                self._record_turn(sequence)
                if not sequence.is_confirmed and sequence not in output.unconfirmed:
                    output.unconfirmed.append(sequence)
                yield sequence
            else:
                break

    def _add(self, sequence: Sequence, num_new_tokens: int, output: SchedulerOutput) -> None:
        if not sequence.is_confirmed:
            return
        if not sequence.was_scheduled:
            self._count_first_admission(sequence, output)
        output.scheduled.append(ScheduledSequence(sequence, num_new_tokens))

    def _withdraw_unconfirmed(self, output: SchedulerOutput) -> None:
        """Let the unconfirmed sequences of the step wait again. Their blocks are free for the next step."""
        for sequence in output.unconfirmed:
            if sequence.status is SequenceStatus.RUNNING:
                self._running.remove(sequence)
                self._wait_again(sequence)

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
        self._wait_again(sequence)
        self.num_preemptions += 1
        output.preempted.append(sequence)
        self._unschedule(sequence, output)
        return sequence

    def _wait_again(self, sequence: Sequence) -> None:
        self.block_manager.free(sequence)
        sequence.status = SequenceStatus.WAITING
        insort(self._waiting, sequence, key=_priority_key)

    def _unschedule(self, sequence: Sequence, output: SchedulerOutput) -> None:
        """Remove a preempted sequence from the step, if its turn came before that of the one that needs
        blocks."""
        output.scheduled[:] = [entry for entry in output.scheduled if entry.sequence is not sequence]
        if sequence in output.first_prefills:
            output.first_prefills.remove(sequence)
            sequence.was_scheduled = False


def _priority_key(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival


def _turn_key(sequence: Sequence) -> tuple[int, int, int]:
    return -sequence.priority, sequence.last_turn, sequence.arrival
