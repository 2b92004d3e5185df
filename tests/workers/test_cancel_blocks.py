"""A cancelled job's blocks are free within one step: the step that is under way may end, one more may begin.

Measured in steps, not in seconds: those whose plan still holds the job although its flag was written before
they began.
"""

from __future__ import annotations

import threading

import pytest
from harness import leave, make_worker, submit

from pagefleet.api import FleetClient
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until

STEP_S = 0.3
NULL = ["--model", "null", "--backend", "null"]
PROMPT = "x" * 500
BYSTANDER, CANCELLED = "bystander", "job"


def job_of(request_id):
    """The engine's request ids are a job's id and the number of the attempt."""
    return request_id.partition("#")[0]


class StepLog:
    """Records the requests of each step, and the blocks in use during it."""

    def __init__(self, engine):
        self.steps = []
        self.begun = threading.Condition()
        self._condition = self._act = None
        self._engine, self._submit = engine, engine.submit
        engine.submit = self._watched

    def _watched(self, plan):
        used = self._engine.stats().num_blocks - self._engine.num_free_blocks
        with self.begun:
            self.steps.append(({job_of(sequence.request_id) for sequence in plan.sequences}, used))
            self.begun.notify_all()
        if self._condition is not None and self._condition(*self.steps[-1]):
            self._act()
            self._condition = None
        self._submit(plan)

    def act_within(self, condition, act):
        """Call ``act`` within the first step that meets the condition, before it is computed."""
        self._condition, self._act = condition, act

    def wait(self, condition, timeout_s=60.0):
        """Wait for a step that meets the condition. Return the number of steps so far."""
        with self.begun:
            assert self.begun.wait_for(lambda: self.steps and condition(*self.steps[-1]), timeout_s)
            return len(self.steps)


@pytest.fixture
def fleet_worker(store):
    """Return a worker that is not started, and the log of its steps."""
    workers = []

    def make(step_time_s, **settings):
        worker = make_worker(store, "w1", step_time_s=step_time_s, drain_s=0.0, **settings)
        workers.append(worker)
        return worker, StepLog(worker._engine)

    yield make
    for worker in workers:
        leave(worker)


def test_a_running_job_joins_one_more_step_at_most(store, fleet_worker):
    worker, log = fleet_worker(STEP_S)
    bystander = submit(store, worker, "bystander", max_tokens=1000)
    message = submit(store, worker, "job", prompt=PROMPT, max_tokens=1000)
    num_before = 0

    def are_decoded(*_):
        return [ids for ids, _ in log.steps[-2:]] == [{BYSTANDER, CANCELLED}] * 2

    def cancel():
        nonlocal num_before
        num_before = len(log.steps)
        store.cancel("job")

    # When the cancel flag is written during a step.
    log.act_within(are_decoded, cancel)
    worker.start()
    worker.put(bystander)
    worker.put(message)
    # Then at most one more step computes the job, and the next can use its blocks.
    log.wait(lambda *_: num_before and len(log.steps) >= num_before + 2)
    assert log.steps[num_before + 1] == ({BYSTANDER}, 1)
    assert message.last_answer()[1].state is JobState.CANCELLED


def test_a_long_prefill_ends_within_one_step_too(store, fleet_worker):
    """The prefill produces no token for the publisher, and its steps are shorter than the poll interval."""
    worker, log = fleet_worker(0.05, max_num_batched_tokens=64)
    engine = worker._engine
    message = submit(store, worker, "job", prompt="x" * 4000, max_tokens=10)
    num_before = 10
    log.act_within(lambda *_: len(log.steps) == num_before, lambda: store.cancel("job"))
    worker.start()
    worker.put(message)
    assert message.last_answer()[1].state is JobState.CANCELLED
    assert wait_until(lambda: engine.num_free_blocks == engine.stats().num_blocks, 60)
    assert len(log.steps) <= num_before + 1


@pytest.fixture
def stack(server_binary, tmp_path):
    with LocalStack(tmp_path, [*NULL, "--null-step-time", str(STEP_S)], drain_s=0.0) as stack:
        yield stack


@pytest.mark.parametrize("how", ["client", "revoke"])
def test_in_a_real_fleet(stack, how):
    """With a single job, each step is one in which this job received a token."""
    with FleetClient(redis_url=stack.redis_url) as fleet:
        stream = fleet.generate(PROMPT, max_tokens=1000, seed=1)
        next(stream)
        if how == "client":
            stream.cancel()
        else:
            app = make_celery(fleet.settings)
            app.AsyncResult(stream.job_id).revoke(terminate=True)
        store = fleet._live.store

        def flag():
            return store.redis.hmget(keys.job(stream.job_id), "cancel", "n:0")

        assert wait_until(lambda: flag()[0] == "1", 60, poll_s=0.002)
        num_before = int(flag()[1])
        assert stream.result().finish_reason == "cancelled"
        worker = None

        def is_free():
            nonlocal worker
            (worker,) = fleet.status().workers
            return worker.num_free_blocks == worker.num_blocks and worker.num_decode_steps > 0

        assert wait_until(is_free, 60)
        # The current step, and one more.
        assert worker.num_decode_steps <= num_before + 2
        if how == "revoke":
            app.close()
