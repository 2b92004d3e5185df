"""Scheduler: one token budget, blocks that run out, priorities; and every sequence ends."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import deque
from statistics import mean
from zlib import crc32

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.ngram_proposer import NgramProposer
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import ScheduledSequence, SchedulerOutput
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.errors import InvalidRequestError
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4
# A run of one token and a few others: prefixes meet often.
PROMPTS = st.builds(
    lambda num_same, others: [0] * num_same + others,
    st.integers(1, 24),
    st.lists(st.integers(0, 1), max_size=6),
)
# Windows of each KV group, shorter and longer than a block.
WINDOWS = st.sampled_from([(None,), (None,), (6,), (None, 5), (None, 9, 1), (4, 13)])


def make_scheduler(
    *,
    num_blocks: int = 100,
    max_num_seqs: int = 8,
    token_budget: int = 32,
    max_num_drafts: int = 0,
    kv_groups: tuple[KVGroup, ...] = (),
) -> Scheduler:
    manager = BlockManager(kv_groups or [KVGroup(None, num_blocks)], BLOCK_SIZE)
    return Scheduler(manager, max_num_seqs, token_budget, max_num_drafts)


def add(
    scheduler: Scheduler,
    name: str,
    num_tokens: int,
    *,
    max_tokens: int = 8,
    priority: int = 0,
    is_confirmed: bool = True,
) -> Sequence:
    """Add a sequence whose prompt begins like no other."""
    sequence = Sequence(
        request_id=name,
        tokens=np.array([crc32(name.encode()) >> 1, *range(num_tokens - 1)]),
        num_prompt_tokens=num_tokens,
        sampling_params=SamplingParams(max_tokens=max_tokens),
        seed=0,
        priority=priority,
        is_confirmed=is_confirmed,
    )
    scheduler.add(sequence, num_tokens + max_tokens)
    return sequence


def run(scheduler: Scheduler, output: SchedulerOutput) -> None:
    """Compute a step with made-up tokens; sequences end at max_tokens."""
    scheduler.bookings.book(output)
    scheduler.bookings.commit(output, np.full(int(output.is_sampled.sum()), 7))
    for sequence in output.sequences:
        if sequence.num_output_tokens == sequence.sampling_params.max_tokens:
            scheduler.finish(sequence, FinishReason.LENGTH)
    scheduler.check_integrity()


def step(scheduler: Scheduler) -> dict[str, int]:
    """One step, as the tokens that each request got."""
    output = scheduler.schedule()
    run(scheduler, output)
    return {entry.sequence.request_id: entry.num_new_tokens for entry in output.scheduled}


def test_a_long_prompt_is_computed_in_chunks_beside_the_running():
    scheduler = make_scheduler(token_budget=10)
    add(scheduler, "a", 3)
    assert step(scheduler) == {"a": 3}

    # When a prompt comes that is larger than the budget
    long = add(scheduler, "long", 25)
    # Then it gets what the running leave, and its token when it has caught up
    assert step(scheduler) == {"a": 1, "long": 9}
    assert step(scheduler) == {"a": 1, "long": 9}
    assert long.num_output_tokens == 0
    assert step(scheduler) == {"a": 1, "long": 7}
    assert long.num_output_tokens == 1
    assert step(scheduler) == {"a": 1, "long": 1}


def test_a_chunk_leaves_a_token_for_each_sequence_behind_it():
    # Given an urgent long prompt in front of two sequences that are streaming
    scheduler = make_scheduler(token_budget=10)
    add(scheduler, "a", 2)
    add(scheduler, "b", 2)
    step(scheduler)
    add(scheduler, "urgent", 30, priority=1)
    assert step(scheduler) == {"a": 1, "b": 1, "urgent": 8}
    # Then, though it is first in the order, the streams behind it don't stall
    assert step(scheduler) == {"urgent": 8, "a": 1, "b": 1}


def test_the_waiting_join_by_priority_then_by_arrival():
    scheduler = make_scheduler(max_num_seqs=1)
    for name, priority in (("first", 0), ("second", 0), ("urgent", 5)):
        add(scheduler, name, 2, max_tokens=1, priority=priority)
    assert [list(step(scheduler)) for _ in range(3)] == [["urgent"], ["first"], ["second"]]


def test_nobody_overtakes_a_large_request():
    # Given one running sequence, a large one that has to wait for it, and a small one that would fit
    scheduler = make_scheduler(num_blocks=6)
    add(scheduler, "running", 8, max_tokens=2)
    step(scheduler)
    add(scheduler, "large", 16, max_tokens=2)
    add(scheduler, "small", 2, max_tokens=2)
    assert list(step(scheduler)) == ["running"]
    # When the large one fits, Then it goes first
    assert list(step(scheduler)) == ["large", "small"]


def test_without_blocks_the_lowest_priority_and_latest_gives_way_and_comes_back_first():
    # Given four sequences, one block each, in a cache of six
    scheduler = make_scheduler(num_blocks=6)
    sequences = {
        name: add(scheduler, name, 3, max_tokens=8, priority=priority)
        for name, priority in (("low", -1), ("a", 0), ("b", 0), ("c", 0))
    }
    # A newcomer leaves a block for each that runs: the four don't come in at once.
    assert list(step(scheduler)) == ["a", "b", "c"]
    assert list(step(scheduler)) == ["a", "b", "c"]
    late = add(scheduler, "late", 3)
    for _ in range(3):
        assert list(step(scheduler)) == ["a", "b", "c"]
    assert sequences["c"].num_computed_tokens == 7

    # When each needs a third block and the cache has none
    assert step(scheduler) == {"a": 1, "b": 1, "c": 1}
    output = scheduler.schedule()
    # Then the latest of the class gives its blocks up, though not its tokens
    assert [sequence.request_id for sequence in output.preempted] == ["c"]
    assert sequences["c"].status is SequenceStatus.WAITING
    assert sequences["c"].num_output_tokens == 6
    assert sequences["c"].block_tables == []
    assert scheduler.num_preemptions == 1
    run(scheduler, output)

    # And it is the first of its class to come back, before a later one and a less urgent one
    order = [name for _ in range(30) for name in step(scheduler)]
    assert order.index("c") < order.index("late") < order.index("low")
    assert late.status is SequenceStatus.FINISHED
    assert not scheduler.has_unfinished_sequences


def test_a_preempted_sequence_finds_its_blocks_in_the_prefix_cache():
    # Given two sequences of two blocks in a cache of five, and an urgent one that takes two for a moment
    scheduler = make_scheduler(num_blocks=5)
    victim = add(scheduler, "victim", 7, max_tokens=5)
    for _ in range(2):
        step(scheduler)
    assert victim.num_computed_tokens == 8
    add(scheduler, "urgent", 13, max_tokens=1, priority=1)
    assert list(step(scheduler)) == ["urgent"]
    assert victim.num_computed_tokens == 0

    # When it comes back, Then only what was overwritten is computed again
    assert step(scheduler) == {"victim": 5}
    assert victim.num_output_tokens == 3
    # And it is not told to the user as a saving, nor counted as a hit
    assert victim.num_cached_tokens == 0
    assert scheduler.prefix_cache_hits == 0


def test_a_more_urgent_request_takes_the_seat_of_a_less_urgent_one():
    scheduler = make_scheduler(max_num_seqs=2)
    add(scheduler, "batch 1", 2)
    add(scheduler, "batch 2", 2)
    step(scheduler)
    # When an urgent one comes and all seats are taken
    add(scheduler, "interactive", 2, priority=1)
    output = scheduler.schedule()
    # Then the latest of the less urgent ones waits
    assert [sequence.request_id for sequence in output.preempted] == ["batch 2"]
    assert {entry.sequence.request_id for entry in output.scheduled} == {"batch 1", "interactive"}
    run(scheduler, output)
    # And one of equal priority takes nobody's seat
    add(scheduler, "interactive 2", 2, priority=0)
    assert scheduler.schedule().preempted == []


def test_a_more_urgent_request_takes_the_blocks_of_a_less_urgent_one():
    scheduler = make_scheduler(num_blocks=6)
    add(scheduler, "batch", 16, max_tokens=4)
    step(scheduler)
    add(scheduler, "interactive", 12, max_tokens=4, priority=1)
    assert list(step(scheduler)) == ["interactive"]


def test_an_urgent_request_takes_as_many_places_as_the_scarcest_group_needs():
    # Given three short batch requests, and a group with a window that has only six blocks
    scheduler = make_scheduler(kv_groups=(KVGroup(None, 100), KVGroup(8, 6)))
    for name in ("batch 1", "batch 2", "batch 3"):
        add(scheduler, name, 2)
    step(scheduler)
    # When an urgent one needs four of them at once
    add(scheduler, "urgent", 20, priority=1)
    output = scheduler.schedule()
    # Then two give way, though the other group has blocks for all
    assert [sequence.request_id for sequence in output.preempted] == ["batch 3", "batch 2"]
    assert [entry.sequence.request_id for entry in output.scheduled] == ["urgent", "batch 1"]


def test_who_gave_way_does_not_come_back_in_the_same_step():
    # Given twins that were computed side by side, each in blocks of its own, and one block left
    scheduler = make_scheduler(num_blocks=7)
    twins = []
    for name in ("a", "b"):
        twins.append(add(scheduler, name, 3, max_tokens=12))
        # Less than a block, or the second would wait for the first one's.
        twins[-1].token_ids[:] = range(3)
    for _ in range(7):
        step(scheduler)
    # When an urgent one takes the second twin's place
    add(scheduler, "urgent", 4, max_tokens=1, priority=1)
    output = scheduler.schedule()
    # Then that twin waits, though it would have room again: it can share the first one's blocks now
    assert output.preempted == [twins[1]]
    assert twins[1] not in [entry.sequence for entry in output.scheduled]
    run(scheduler, output)
    assert step(scheduler)["b"] == 2


def confirm(output: SchedulerOutput) -> list[str]:
    for sequence in output.unconfirmed:
        sequence.is_confirmed = True
    return [sequence.request_id for sequence in output.unconfirmed]


def test_a_step_computes_others_while_a_sequence_waits_for_its_confirmation():
    scheduler = make_scheduler()
    add(scheduler, "a", 3)
    add(scheduler, "new", 5, is_confirmed=False)
    # Given steps that compute "a" and report "new"
    for num_new_tokens in (3, 1):
        output = scheduler.schedule()
        assert (len(output.unconfirmed), scheduler.num_running, scheduler.num_waiting) == (1, 1, 1)
        assert [entry.num_new_tokens for entry in output.scheduled] == [num_new_tokens]
        run(scheduler, output)
    # When it is confirmed, then the next step computes it, and its first prefill is reported only now
    assert confirm(output) == ["new"]
    output = scheduler.schedule()
    assert [sequence.request_id for sequence in output.first_prefills] == ["new"]
    assert output.unconfirmed == []
    run(scheduler, output)
    assert step(scheduler) == {"a": 1, "new": 1}


def test_a_step_that_is_replaced_has_what_was_confirmed_meanwhile():
    scheduler = make_scheduler(max_num_drafts=4)
    for name, is_confirmed in (("old", True), ("new", False), ("later", False)):
        add(scheduler, name, 5, is_confirmed=is_confirmed)
    output = scheduler.schedule()
    output.unconfirmed[0].is_confirmed = True
    output = scheduler.reschedule(output)
    # Each first prefill is reported once
    assert [sequence.request_id for sequence in output.first_prefills] == ["old", "new"]
    assert [sequence.request_id for sequence in output.unconfirmed] == ["later"]
    run(scheduler, output)


def test_a_step_reports_together_what_it_has_room_for():
    # Given a budget for two of three new sequences, and behind them one that is confirmed
    scheduler = make_scheduler(token_budget=10)
    for name in ("a", "b", "c"):
        add(scheduler, name, 5, is_confirmed=False)
    add(scheduler, "old", 1)
    # Then it does not overtake them
    output = scheduler.schedule()
    assert (output.scheduled, confirm(output)) == ([], ["a", "b"])
    output = scheduler.schedule()
    assert [entry.sequence.request_id for entry in output.scheduled] == ["a", "b"]
    run(scheduler, output)
    # And a batch that is full reports none of those that wait
    output = scheduler.schedule()
    assert confirm(output) == ["c"]
    run(scheduler, output)
    scheduler.max_num_seqs = 3
    add(scheduler, "d", 1, is_confirmed=False)
    step(scheduler)
    assert scheduler.schedule().unconfirmed == []


def test_an_unconfirmed_sequence_preempts_none_and_its_twin_waits_for_it():
    # Given eight blocks, three of them used, and an urgent sequence that needs seven
    scheduler = make_scheduler(num_blocks=8)
    running = add(scheduler, "running", 9)
    step(scheduler)
    add(scheduler, "urgent", 26, max_tokens=1, priority=1, is_confirmed=False)
    # Then it is reported, and preempts the running one only after it is confirmed
    output = scheduler.schedule()
    assert [entry.sequence for entry in output.scheduled] == [running]
    assert (len(output.unconfirmed), output.preempted) == (1, [])
    run(scheduler, output)
    confirm(output)
    output = scheduler.schedule()
    assert output.preempted == [running]
    assert [entry.sequence.request_id for entry in output.scheduled] == ["urgent"]
    run(scheduler, output)
    # And with the same prompt, only the first one is reported: the other waits for its blocks
    scheduler = make_scheduler()
    twins = [add(scheduler, "twin", 9, is_confirmed=False) for _ in range(2)]
    output = scheduler.schedule()
    assert output.unconfirmed == twins[:1]


def test_first_prefills_name_each_fresh_sequence_once():
    scheduler = make_scheduler(token_budget=4, num_blocks=7)
    fresh = add(scheduler, "fresh", 10)
    resumed = add(scheduler, "resumed", 3)
    resumed.append([7])
    seen = []
    while scheduler.has_unfinished_sequences:
        output = scheduler.schedule()
        seen += output.first_prefills
        if scheduler.num_preemptions == 0 and fresh.num_output_tokens == 2:
            # Also not again after a preemption.
            run(scheduler, output)
            add(scheduler, "urgent", 20, priority=1)
            continue
        run(scheduler, output)
    assert scheduler.num_preemptions > 0
    assert [sequence.request_id for sequence in seen] == ["fresh", "urgent"]


def test_prefix_hits_are_counted_in_tokens():
    scheduler = make_scheduler()
    for _ in range(2):
        sequence = add(scheduler, "same", 10, max_tokens=1)
        step(scheduler)
    assert sequence.num_cached_tokens == 8
    assert scheduler.prefix_cache_queries == 20
    assert scheduler.prefix_cache_hits == 8
    assert scheduler.bookings.num_prompt_tokens_computed == 12


def test_slots_without_a_token_are_the_ends_of_last_blocks():
    scheduler = make_scheduler()
    assert scheduler.kv_waste == 0
    add(scheduler, "a", 5)
    add(scheduler, "b", 8)
    scheduler.schedule()
    assert scheduler.kv_waste == 3 / 16


def test_less_than_four_percent_of_the_kv_cache_is_waste_while_jobs_come_and_go():
    """Prompts of 64 to 512 tokens and answers of 32 to 256, in blocks of 16."""
    draw = random.Random(7).randint
    scheduler = Scheduler(BlockManager([KVGroup(None, 2000)], 16), 64, 512)
    wastes = []
    for index in range(1500):
        while scheduler.num_waiting < 4:
            add(scheduler, f"{index}-{scheduler.num_waiting}", draw(64, 512), max_tokens=draw(32, 256))
        step(scheduler)
        wastes.append(scheduler.kv_waste)
    assert mean(wastes[500:]) < 0.04


@pytest.mark.parametrize("token_budget", [100, 512, 2048, 100_000])
def test_a_prefix_of_512_tokens_is_computed_once_for_64_that_come_together(token_budget):
    scheduler = make_scheduler(num_blocks=10_000, max_num_seqs=64, token_budget=token_budget)
    for index in range(64):
        sequence = add(scheduler, "burst", 512 + 5)
        sequence.token_ids[512:] = [index] * 5
    while scheduler.has_unfinished_sequences:
        step(scheduler)
    assert scheduler.bookings.num_prompt_tokens_computed == 512 + 64 * 5
    assert scheduler.num_preemptions == 0


@settings(max_examples=60, deadline=None)
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=12), token_budget=st.integers(1, 60))
def test_whatever_prefixes_they_share_each_block_is_computed_once(prompts, token_budget):
    scheduler = make_scheduler(num_blocks=1000, max_num_seqs=12, token_budget=token_budget)
    distinct, num_tokens = set(), 0
    for index, token_ids in enumerate(prompts):
        sequence = add(scheduler, str(index), len(token_ids), max_tokens=1)
        sequence.token_ids[:] = token_ids
        # The last token's block is always its own, though others may find it.
        num_full = (len(token_ids) - 1) // BLOCK_SIZE
        distinct |= {tuple(token_ids[: (i + 1) * BLOCK_SIZE]) for i in range(num_full)}
        num_tokens += len(token_ids) - num_full * BLOCK_SIZE
    while scheduler.has_unfinished_sequences:
        step(scheduler)
    assert scheduler.bookings.num_prompt_tokens_computed <= len(distinct) * BLOCK_SIZE + num_tokens


def test_who_waits_for_a_prefix_holds_nobody_of_its_priority_up():
    scheduler = make_scheduler(token_budget=8)
    first, second = add(scheduler, "first", 12), add(scheduler, "second", 12)
    second.token_ids[:] = first.token_ids
    add(scheduler, "other", 3)
    add(scheduler, "batch", 3, priority=-1)
    assert step(scheduler) == {"first": 8}
    # The last block is nobody's to share; what is less urgent does not pass who waits.
    assert step(scheduler) == {"first": 4, "second": 4}
    assert step(scheduler) == {"first": 1, "second": 1, "other": 3, "batch": 3}


def test_who_waits_for_a_prefix_takes_nobody_s_place_and_computes_it_if_the_first_one_goes():
    scheduler = make_scheduler(token_budget=8)
    first, second = add(scheduler, "first", 24), add(scheduler, "second", 24)
    second.token_ids[:] = first.token_ids
    add(scheduler, "other", 3)
    assert step(scheduler) == {"first": 8}
    scheduler.abort(first)
    assert step(scheduler) == {"second": 8}
    assert second.num_cached_tokens == 8
    assert step(scheduler) == {"second": 8}


def test_what_can_never_fit_is_refused():
    scheduler = make_scheduler(num_blocks=4)
    # 16 slots: 17 tokens fit, because the last token's K/V are never needed.
    add(scheduler, "fits", 9, max_tokens=8)
    with pytest.raises(InvalidRequestError, match="lower max_tokens") as raised:
        add(scheduler, "too large", 9, max_tokens=9)
    assert raised.value.code == "exceeds_capacity"
    assert scheduler.num_waiting == 1


def test_an_aborted_sequence_leaves_at_once_also_in_the_middle_of_a_step():
    scheduler = make_scheduler()
    waiting, running = add(scheduler, "waiting", 3), add(scheduler, "running", 3)
    scheduler.abort(waiting)
    output = scheduler.schedule()
    scheduler.abort(running)
    assert scheduler.block_manager.num_free_blocks == 100
    # The step had it; its result is not booked.
    run(scheduler, output)
    assert running.num_output_tokens == 0
    assert running.finish_reason is FinishReason.ABORT
    assert not scheduler.has_unfinished_sequences


def test_a_step_that_failed_can_be_scheduled_again():
    scheduler = make_scheduler(num_blocks=8)
    sequence = add(scheduler, "a", 10)
    scheduler.schedule()
    # No update: the executor raised.
    assert step(scheduler) == {"a": 10}
    assert sequence.num_output_tokens == 1


def test_the_budget_can_change_between_steps_and_is_never_zero():
    scheduler = make_scheduler(token_budget=10)
    add(scheduler, "a", 40)
    assert step(scheduler) == {"a": 10}
    scheduler.token_budget = 5
    assert step(scheduler) == {"a": 5}
    with pytest.raises(ValueError, match="at least 1"):
        scheduler.token_budget = 0


def test_the_core_imports_no_torch():
    program = (
        "import sys\n"
        "import pagefleet.engine\n"
        "from pagefleet.engine.core import scheduler\n"
        "from pagefleet.engine.requests import sequence_factory, stop_checker\n"
        "from pagefleet.engine.execution import executor, null_executor\n"
        "from pagefleet.engine.loading import loader, null_loader\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'redis', 'celery'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def smallest_pool(window: int) -> int:
    """The blocks of a pool that can hold one sequence of any length."""
    return (window - 2) // BLOCK_SIZE + 3


def token_at(position: int) -> int:
    """What every sequence of the machine goes on with: it repeats itself, but never for long."""
    return position.bit_count() % 2


def sampled_rows(output: SchedulerOutput) -> NDArray[np.int64]:
    tokens = []
    for entry in output.scheduled:
        if entry.is_sampled:
            num_drafts = len(entry.draft_token_ids)
            end = entry.num_computed_tokens + entry.num_new_tokens - num_drafts
            first = end - entry.sequence.num_prompt_tokens
            tokens += [token_at(first + index) for index in range(num_drafts + 1)]
    return np.array(tokens, dtype=np.int64)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go in any order while steps run, in a cache that is always too small.

    The executor of this test keeps what each slot of the KV cache holds, and looks at every token that a
    scheduled sequence attends to: a block that was lost, shared wrongly or not computed shows at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sequences: list[Sequence] = []
        self.kv: dict[tuple[int, int, int], tuple[int, ...]] = {}
        self.first_prefills: list[Sequence] = []
        # Sequences that wait for their confirmation.
        self.reported: set[Sequence] = set()
        # Steps that were computed but whose tokens did not come yet.
        self.in_flight: deque[SchedulerOutput] = deque()

    @initialize(windows=WINDOWS, num_more=st.integers(0, 7), max_in_flight=st.integers(0, 1))
    def start(self, windows: tuple[int | None, ...], num_more: int, max_in_flight: int) -> None:
        self.windows = windows
        self.max_in_flight = max_in_flight
        self.has_failed = False
        # Pools with a window have the smallest size that holds it, or a little more.
        sizes = [12 if window is None else smallest_pool(window) + num_more for window in windows]
        self.scheduler = make_scheduler(
            max_num_seqs=4,
            token_budget=9,
            max_num_drafts=6,
            kv_groups=tuple(map(KVGroup, windows, sizes)),
        )

    @rule(
        token_ids=PROMPTS,
        max_tokens=st.integers(1, 25),
        priority=st.integers(0, 2),
        is_confirmed=st.booleans(),
    )
    def add(self, token_ids: list[int], max_tokens: int, priority: int, is_confirmed: bool) -> None:
        sequence = Sequence(
            request_id=str(len(self.sequences)),
            tokens=np.array(token_ids),
            num_prompt_tokens=len(token_ids),
            sampling_params=SamplingParams(max_tokens=max_tokens),
            seed=0,
            priority=priority,
            is_confirmed=is_confirmed,
            proposer=NgramProposer(len(token_ids)),
        )
        num_slots = 12 * BLOCK_SIZE
        # With windows alone, any length fits.
        if None in self.windows and len(token_ids) + max_tokens - 1 > num_slots:
            with pytest.raises(InvalidRequestError):
                self.scheduler.add(sequence, len(token_ids) + max_tokens)
        else:
            self.scheduler.add(sequence, len(token_ids) + max_tokens)
            self.sequences.append(sequence)

    @rule(token_budget=st.integers(1, 20))
    def set_token_budget(self, token_budget: int) -> None:
        self.scheduler.token_budget = token_budget

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.scheduler.abort(data.draw(st.sampled_from(self.unfinished())))

    @precondition(lambda self: self.reported)
    @rule()
    def confirm(self) -> None:
        while self.reported:
            self.reported.pop().is_confirmed = True

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        output = self.schedule()
        if output.unconfirmed and data.draw(st.booleans()):
            # Now and then one is confirmed, and another aborted, before the step starts.
            output.unconfirmed[0].is_confirmed = True
            if output.sequences and data.draw(st.booleans()):
                self.scheduler.abort(output.sequences[0])
            output = self.schedule(output)
        # Now and then a sequence is taken back between a step's decision and its start.
        if output.sequences and data.draw(st.integers(0, 9)) == 0:
            self.scheduler.abort(data.draw(st.sampled_from(output.sequences)))
        self.execute(output)
        if len(self.in_flight) > self.max_in_flight:
            self.take()

    @precondition(lambda self: self.in_flight)
    @rule()
    def take(self) -> None:
        step = self.in_flight.popleft()
        self.scheduler.bookings.commit(step, sampled_rows(step))
        for sequence in step.sequences:
            if sequence.status is SequenceStatus.FINISHED:
                continue
            assert sequence.num_output_tokens <= sequence.sampling_params.max_tokens
            if sequence.num_output_tokens == sequence.sampling_params.max_tokens:
                self.scheduler.finish(sequence, FinishReason.LENGTH)

    @precondition(lambda self: self.in_flight)
    @rule()
    def fail(self) -> None:
        """The oldest step fails: the steps behind it cannot be used."""
        self.has_failed = True
        while self.in_flight:
            self.scheduler.bookings.unbook(self.in_flight.pop())

    def schedule(self, instead_of: SchedulerOutput | None = None) -> SchedulerOutput:
        had_unfinished = self.scheduler.has_unfinished_sequences
        if instead_of is None:
            output = self.scheduler.schedule()
        else:
            output = self.scheduler.reschedule(instead_of)
            self.first_prefills = [
                sequence for sequence in self.first_prefills if sequence not in instead_of.first_prefills
            ]
        has_work = bool(output.sequences or output.unconfirmed or self.in_flight)
        assert has_work == (had_unfinished or bool(self.in_flight)), "a step without progress"
        self.reported |= set(output.unconfirmed)
        assert all(sequence.status is SequenceStatus.WAITING for sequence in output.unconfirmed)
        assert sum(entry.num_new_tokens for entry in output.scheduled) <= self.scheduler.token_budget
        assert all(entry.num_new_tokens >= 1 for entry in output.scheduled)
        scheduled = [entry.sequence for entry in output.scheduled]
        assert all(sequence.is_confirmed for sequence in scheduled)
        assert len(set(scheduled)) == len(scheduled)
        assert not set(scheduled) & set(output.preempted)
        self.first_prefills += output.first_prefills
        assert len(set(self.first_prefills)) == len(self.first_prefills)
        return output

    def execute(self, output: SchedulerOutput) -> None:
        output = output.select(np.flatnonzero(output.is_alive))
        entries = output.scheduled
        for entry in entries:
            text = self.text(entry)
            for position in range(
                entry.num_computed_tokens, entry.num_computed_tokens + entry.num_new_tokens
            ):
                for table in range(len(self.windows)):
                    self.kv[self.slot(entry.sequence, table, position)] = tuple(text[: position + 1])
        # Only now: no sequence of the step may have written over another one's K/V.
        for entry in entries:
            text, num_computed = self.text(entry), entry.num_computed_tokens
            for table, window in enumerate(self.windows):
                # What the first token of the step reads, and all later ones.
                first = 0 if window is None else max(0, num_computed + 1 - window)
                for position in range(first, num_computed + entry.num_new_tokens):
                    found = self.kv[self.slot(entry.sequence, table, position)]
                    assert found == tuple(text[: position + 1])
        self.scheduler.bookings.book(output)
        self.in_flight.append(output)

    @staticmethod
    def text(entry: ScheduledSequence) -> list[int]:
        """The sequence with the tokens that steps in flight will find, and its drafts."""
        sequence, num_drafts = entry.sequence, len(entry.draft_token_ids)
        end = entry.num_computed_tokens + entry.num_new_tokens - num_drafts
        known = sequence.token_ids.tolist()
        first = sequence.num_prompt_tokens
        return [*known, *(token_at(at - first) for at in range(len(known), end)), *entry.draft_token_ids]

    def slot(self, sequence: Sequence, table: int, position: int) -> tuple[int, int, int]:
        index, offset = divmod(position, BLOCK_SIZE)
        return table, int(self.scheduler.table.block_tables[table, sequence.slot, index]), offset

    @invariant()
    def books_balance(self) -> None:
        self.scheduler.check_integrity()
        if self.max_in_flight or self.has_failed:
            # Steps in flight hold blocks until they end, and failed ones until they are computed again.
            return
        # Drafts take their blocks with them.
        for sequence in self.scheduler._running:
            for table, window in zip(sequence.block_tables, self.windows, strict=True):
                assert len(table.block_ids) <= -(-sequence.num_tokens // BLOCK_SIZE)
                assert window is None or len(table.used) <= smallest_pool(window)

    def unfinished(self) -> list[Sequence]:
        return [sequence for sequence in self.sequences if sequence.status is not SequenceStatus.FINISHED]

    def teardown(self) -> None:
        """Every sequence ends, in a number of steps that its tokens bound."""
        max_steps = 1 + sum(
            # A step may only report a sequence that waits for its confirmation.
            not sequence.is_confirmed
            for sequence in self.unfinished()
        )
        max_steps += sum(
            (sequence.num_prompt_tokens + sequence.sampling_params.max_tokens) * (len(self.sequences) + 1)
            for sequence in self.unfinished()
        )
        for _ in range(2 * max_steps):
            if not self.scheduler.has_unfinished_sequences:
                break
            self.confirm()
            self.execute(self.schedule())
            if len(self.in_flight) > self.max_in_flight or not len(self.in_flight[-1]):
                self.take()
        while self.in_flight:
            self.take()
        assert self.unfinished() == []
        for sequence in self.sequences:
            if sequence.finish_reason is FinishReason.LENGTH:
                expected = [token_at(position) for position in range(sequence.sampling_params.max_tokens)]
                assert sequence.output_token_ids == expected
        assert all(
            group.num_free_blocks == group.num_blocks for group in self.scheduler.block_manager.stats()
        )


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
