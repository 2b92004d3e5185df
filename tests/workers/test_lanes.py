"""Interactive jobs run before any number of batch jobs; batch jobs use the rest and are preempted."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from pagefleet.api import FleetClient
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until

pytestmark = pytest.mark.alone

STEP_S = 0.1
NUM_SEATS = 16
NUM_RESERVED = NUM_SEATS // 8
WORKER = ["--model", "null", "--backend", "null", "--null-step-time", str(STEP_S)]
WORKER += ["--max-num-seqs", str(NUM_SEATS)]


@pytest.fixture
def fleet(server_binary, tmp_path):
    with LocalStack(tmp_path, WORKER, drain_s=0.0) as stack, FleetClient(redis_url=stack.redis_url) as fleet:
        yield fleet


def num_running(fleet):
    (worker,) = fleet.status().workers
    return worker.num_running


def first_token_s(fleet, **options):
    begun_at = time.monotonic()
    stream = fleet.generate("hello", max_tokens=2, **options)
    next(stream)
    took_s = time.monotonic() - begun_at
    stream.result()
    return took_s


def test_a_thousand_batch_jobs_delay_an_interactive_one_by_a_step(fleet):
    idle_s = sorted(first_token_s(fleet) for _ in range(5))[2]
    for index in range(1000):
        fleet.generate("x", lane="batch", priority=9, max_tokens=500, seed=index)
    assert wait_until(lambda: num_running(fleet) == NUM_SEATS - NUM_RESERVED, 60)
    busy_s = sorted(first_token_s(fleet, priority=0) for _ in range(5))[2]
    # The goal is one more step; the limit in a test is three times the goal.
    assert busy_s < idle_s + 3 * STEP_S


def test_batch_gives_its_seats_to_interactive_work_and_ends_exactly(fleet):
    batch = [fleet.generate("b", lane="batch", max_tokens=30, seed=index) for index in range(NUM_SEATS)]
    assert wait_until(lambda: num_running(fleet) == NUM_SEATS - NUM_RESERVED, 60)
    begun_at = time.monotonic()
    urgent = [fleet.generate("i", max_tokens=10, seed=index) for index in range(NUM_SEATS)]
    for stream in urgent:
        next(stream)
    # Without preemption the last one would wait 3 s, until the batch jobs end.
    assert time.monotonic() - begun_at < 2
    for index, stream in enumerate(urgent):
        assert stream.result().token_ids == [null_token(index, 0, at) for at in range(10)]
    results = [stream.result() for stream in batch]
    for index, result in enumerate(results):
        assert result.token_ids == [null_token(index, 0, at) for at in range(30)]
    assert max(result.attempts for result in results) >= 2
    assert wait_until(lambda: all(q.num_open == q.num_queued == 0 for q in fleet.status().queues), 60)


def test_priorities_within_a_lane(fleet):
    """9 is the most urgent of ten separate priorities."""
    blockers = [fleet.generate("x", max_tokens=15) for _ in range(NUM_SEATS)]
    assert wait_until(lambda: num_running(fleet) == NUM_SEATS, 60)
    waiting = {}
    for priority in (0, 3, 4, 5, 6, 9):
        waiting[priority] = [fleet.generate("x", max_tokens=1, priority=priority) for _ in range(NUM_SEATS)]
    for stream in blockers:
        stream.result()
    claimed_at = {
        priority: [_claimed_at(fleet, stream) for stream in streams] for priority, streams in waiting.items()
    }
    order = sorted(claimed_at, key=lambda priority: sum(claimed_at[priority]))
    assert order == [9, 6, 5, 4, 3, 0]
    for more, less in pairwise(order):
        assert max(claimed_at[more]) <= min(claimed_at[less]) + 2 * STEP_S


def _claimed_at(fleet, stream):
    stream.result()
    return fleet._live.store.read(stream.job_id).result().claimed_at
