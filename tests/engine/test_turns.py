"""Turns: a budget smaller than the number of running sequences goes round; the urgent come first."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import SchedulerOutput, StepBuilder
from pagefleet.engine.core.sequence import Sequence, SequenceStatus
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4
MANY = 100_000


def make_scheduler(*, num_blocks: int = 1000, token_budget: int = MANY, max_num_seqs: int = 64) -> Scheduler:
    return Scheduler(BlockManager([KVGroup(None, num_blocks)], BLOCK_SIZE), max_num_seqs, token_budget)


def add(
    scheduler: Scheduler, name: int, *, num_tokens: int = 2, max_tokens: int = 200, priority: int = 0
) -> Sequence:
    """A sequence whose prompt begins like no other."""
    prompt = [1000 + name, *range(num_tokens - 1)]
    sequence = Sequence(
        str(name),
        np.array(prompt),
        num_tokens,
        SamplingParams(max_tokens=max_tokens),
        seed=0,
        priority=priority,
    )
    scheduler.add(sequence, num_tokens + max_tokens)
    return sequence


def step(scheduler: Scheduler) -> SchedulerOutput:
    output = scheduler.schedule()
    assert sum(entry.num_new_tokens for entry in output.scheduled) <= scheduler.token_budget
    scheduler.bookings.book(output)
    scheduler.bookings.commit(output, np.full(int(output.is_sampled.sum()), 7))
    for sequence in output.sequences:
        if sequence.num_output_tokens == sequence.sampling_params.max_tokens:
            scheduler.finish(sequence, FinishReason.LENGTH)
    scheduler.check_integrity()
    return output


def test_forty_streams_and_a_budget_of_sixteen():
    scheduler = make_scheduler()
    sequences = [add(scheduler, index) for index in range(40)]
    step(scheduler)
    scheduler.token_budget = 16
    for _ in range(50):
        step(scheduler)
    # 50 steps of 16 tokens, and the first step's
    assert {sequence.num_output_tokens for sequence in sequences} == {1 + 50 * 16 // 40}


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(1, 40), st.integers(0, 1)),
    min_size=1,
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(
    arrivals=ARRIVALS,
    budgets=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    num_blocks=st.sampled_from([30, 60, 1000]),
)
def test_of_equal_priority_none_gets_two_turns_more_than_another(arrivals, budgets, num_blocks):
    """While both of them run: in any stretch of steps, whatever comes, ends and gives way meanwhile."""
    scheduler = make_scheduler(num_blocks=num_blocks, max_num_seqs=8)
    lead: dict[tuple[Sequence, Sequence], list[int]] = defaultdict(lambda: [0])
    number = 0
    while scheduler.has_unfinished_sequences or number <= 30:
        for name, (at, num_tokens, max_tokens, priority) in enumerate(arrivals):
            if at == number:
                add(scheduler, name, num_tokens=num_tokens, max_tokens=max_tokens, priority=priority)
        scheduler.token_budget = budgets[number % len(budgets)]
        before = list(scheduler._running)
        output = step(scheduler)
        turns = Counter(entry.sequence for entry in output.scheduled)
        going_on = [
            each for each in before if each.status is SequenceStatus.RUNNING and each not in output.preempted
        ]
        for pair in combinations(going_on, 2):
            if pair[0].priority == pair[1].priority:
                lead[pair].append(lead[pair][-1] + turns[pair[0]] - turns[pair[1]])
        for pair in [pair for pair in lead if not set(pair) <= set(going_on)]:
            del lead[pair]
        assert all(max(leads) - min(leads) <= 1 for leads in lead.values())
        number += 1
        assert number < 10_000, "no end"


def test_a_prompt_among_streams_that_take_turns_gets_more_than_a_token():
    scheduler = make_scheduler()
    streams = [add(scheduler, index) for index in range(20)]
    step(scheduler)
    prompt = add(scheduler, 20, num_tokens=101)
    scheduler.token_budget = 30
    step(scheduler)
    scheduler.token_budget = 10
    num_steps = 0
    before = [stream.num_output_tokens for stream in streams]
    while prompt.num_output_tokens == 0:
        step(scheduler)
        num_steps += 1
    # 91 tokens of it are left, 5 a turn, and in each round the others have their 20.
    assert num_steps <= 19 * 26 // 10 + 1
    told = [stream.num_output_tokens - was for stream, was in zip(streams, before, strict=True)]
    assert max(told) - min(told) <= 1
    assert min(told) >= 17


def test_an_urgent_one_gets_its_tokens_though_the_budget_is_less_than_those_that_run():
    scheduler = make_scheduler()
    for index in range(40):
        add(scheduler, index)
    step(scheduler)
    scheduler.token_budget = 16
    urgent = add(scheduler, 40, num_tokens=3, priority=1)
    assert next(entry.sequence for entry in step(scheduler).scheduled) is urgent
    assert urgent.num_output_tokens == 1


def test_an_urgent_one_does_not_wait_for_a_long_prompt_that_is_less_urgent():
    scheduler = make_scheduler(token_budget=16)
    add(scheduler, 0, num_tokens=400)
    step(scheduler)
    urgent = add(scheduler, 1, num_tokens=3, priority=1)
    assert [(entry.sequence.request_id, entry.num_new_tokens) for entry in step(scheduler).scheduled] == [
        ("1", 3),
        ("0", 13),
    ]
    assert urgent.num_output_tokens == 1


def test_an_urgent_one_does_not_wait_for_a_prefix_that_a_less_urgent_one_has_promised():
    # Given a batch job behind streams that take the whole budget, and an urgent one with the same prompt
    scheduler = make_scheduler()
    batch = add(scheduler, 7, num_tokens=100)
    scheduler.token_budget = 20
    step(scheduler)
    for index in range(20):
        add(scheduler, index + 100, priority=1)
    step(scheduler)
    scheduler.token_budget = 16
    urgent = add(scheduler, 7, num_tokens=100, priority=2)
    equal = add(scheduler, 7, num_tokens=100, priority=2)
    # Then it computes the rest itself
    while urgent.num_output_tokens == 0:
        assert urgent in [entry.sequence for entry in step(scheduler).scheduled]
    # And one of its own priority waits for its blocks
    step(scheduler)
    assert equal.num_cached_tokens == 96
    assert batch.num_computed_tokens < 96


def test_none_gives_way_to_an_urgent_one_that_would_not_fit_all_the_same():
    # Given a cache that an urgent sequence fills but for a few blocks, in which a batch one is at work
    scheduler = make_scheduler(num_blocks=32)
    first = add(scheduler, 0, num_tokens=60, max_tokens=20, priority=1)
    batch = [add(scheduler, index, num_tokens=4, max_tokens=20) for index in (1, 2)]
    step(scheduler)
    assert all(each.status is SequenceStatus.RUNNING for each in (first, *batch))
    # When one comes that even all their blocks would not be enough for
    late = add(scheduler, 3, num_tokens=68, max_tokens=4, priority=1)
    for _ in range(19):
        output = step(scheduler)
        # Then they go on
        assert output.preempted == []
        assert late.status is SequenceStatus.WAITING
    assert first.status is SequenceStatus.FINISHED
    # And give way, only those that must, when it fits
    assert step(scheduler).preempted == []
    assert late.status is not SequenceStatus.WAITING


def test_only_as_many_give_way_as_an_urgent_one_needs():
    scheduler = make_scheduler(num_blocks=20)
    batch = [add(scheduler, index, num_tokens=8, max_tokens=4) for index in range(5)]
    step(scheduler)
    # 10 blocks are left and a spare one for each that runs: two must go.
    add(scheduler, 9, num_tokens=40, max_tokens=4, priority=1)
    assert step(scheduler).preempted == [batch[4], batch[3]]


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2), st.booleans()), max_size=10),
    num_tokens=st.integers(1, 70),
    num_steps=st.integers(0, 4),
    is_shared=st.booleans(),
)
def test_the_urgent_one_is_seated_whenever_someone_gave_way_to_it(arrivals, num_tokens, num_steps, is_shared):
    """Also with prefixes that some of them share, which are free only when all of those are gone."""
    scheduler = make_scheduler(num_blocks=20, max_num_seqs=6, token_budget=64)
    for name, (length, priority, shares) in enumerate(arrivals):
        sequence = add(scheduler, name, num_tokens=length, max_tokens=4, priority=priority)
        if shares:
            sequence.token_ids[0] = 1
    for _ in range(num_steps):
        step(scheduler)
    urgent = add(scheduler, 99, num_tokens=num_tokens, max_tokens=4, priority=3)
    if is_shared:
        urgent.token_ids[0] = 1
    builder = StepBuilder()
    scheduler._preempt_for_urgent(builder)
    assert not builder.preempted or scheduler._has_room_for(urgent)
    # And it was needed: without the last one's leaving there was no room.
    if not builder.preempted:
        lower = [each for each in scheduler._running if each.priority < 3]
        for _ in lower:
            scheduler._preempt_last(builder)
        assert not lower or not scheduler._has_room_for(urgent) or len(builder.preempted) == len(lower)
