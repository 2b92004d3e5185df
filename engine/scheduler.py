"""Scheduler: which sequences the next step computes, and how many tokens of each.

Knows nothing of tensors, text or why a sequence ends: it is told.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable
from typing import NamedTuple

from pagefleet.engine.block_manager import BlockManager
from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sequence import Sequence, SequenceStatus
from pagefleet.engine.speculation import Speculation

__all__ = ["ScheduledSequence", "Scheduler", "SchedulerOutput"]


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
    seat and blocks only from running ones of strictly lower priority.

    A waiting sequence whose next block a running one is about to compute waits for that block: a prefix that
    many share is computed once, also when they come together. Only then others of its priority may pass it.

    What is left of the budget goes to guesses at what follows (speculation.py): the sentence holds with
    `num_tokens` and the drafts behind them.
    """

    def __init__(
        self, block_manager: BlockManager, max_num_seqs: int, token_budget: int, max_num_drafts: int = 0
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
        self._num_arrivals = 0
        # Both sorted by _urgency.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def token_budget(self) -> int:
        """Tokens that a step computes at most.

        With fewer than there are running sequences, only the first of them advance; keep it above
        `max_num_seqs` unless the step's time demands otherwise.
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

        Before anything is scheduled, so that no victim is in the step already.
        """
        while (
            self._waiting
            and self._running
            and self._waiting[0].priority > self._running[-1].priority
            and not self.block_manager.is_prefix_promised(self._waiting[0])
            and not self._has_room_for(self._waiting[0])
        ):
            self._preempt_last(output)

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Schedule the running in their order; returns the tokens left of the budget."""
        num_tokens_left = self._token_budget
        index = 0
        # Preemption shortens the list from its end.
        while index < len(self._running) and num_tokens_left > 0:
            sequence = self._running[index]
            # A long chunk leaves a token for each one behind it: streams don't stall for a prompt.
            num_later = len(self._running) - index - 1
            num_new_tokens = min(
                len(sequence.token_ids) - sequence.num_computed_tokens, max(1, num_tokens_left - num_later)
            )
            if not self._grow(sequence, sequence.num_computed_tokens + num_new_tokens, output):
                break
            output.scheduled.append(ScheduledSequence(sequence, num_new_tokens))
            num_tokens_left -= num_new_tokens
            index += 1
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
        index = 0
        # Each one that is passed over was looked at: with thousands in line, not more than could be seated.
        while num_tokens_left > 0 and index < min(len(self._waiting), self.max_num_seqs):
            sequence = self._waiting[index]
            # Who gave way in this step would only get blocks back to lose them again.
            if sequence in output.preempted or sequence.priority < self._waiting[0].priority:
                break
            if self.block_manager.is_prefix_promised(sequence):
                index += 1
            elif self._has_room_for(sequence):
                num_tokens_left -= self._admit(index, output, num_tokens_left)
            else:
                break
        return num_tokens_left

    def _admit(self, index: int, output: SchedulerOutput, num_tokens_left: int) -> int:
        """Seat a waiting sequence; returns how many of its tokens the step computes."""
        sequence = self._waiting.pop(index)
        self.block_manager.allocate(sequence)
        sequence.status = SequenceStatus.RUNNING
        insort(self._running, sequence, key=_urgency)
        if not sequence.was_scheduled:
            self._count_first_admission(sequence, output)
        num_new_tokens = min(sequence.num_tokens - sequence.num_computed_tokens, num_tokens_left)
        output.scheduled.append(ScheduledSequence(sequence, num_new_tokens))
        return num_new_tokens

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
        if self.block_manager.enable_prefix_caching:
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
        return sequence


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival
