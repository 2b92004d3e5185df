"""MARK (protocol line 5) while the engine computes: a slow Redis delays only the jobs that wait for it."""

from __future__ import annotations

import threading
import time

import pytest
from harness import leave, make_worker, submit

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import StorageFull
from pagefleet.api.contract.messages import JobState
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until


class SlowMarks:
    """Delays every MARK while `go_on` is not set, and records the jobs of each."""

    def __init__(self, worker) -> None:
        self.calls: list[list[str]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._mark = worker._store.mark
        worker._store.mark = self

    def __call__(self, worker_id, epochs):
        self.calls.append(sorted(epochs))
        assert self.go_on.wait(60)
        return self._mark(worker_id, epochs)


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    yield worker
    leave(worker)


@pytest.fixture
def marks(worker):
    marks = SlowMarks(worker)
    yield marks
    marks.go_on.set()


@pytest.fixture
def running(store, worker, marks):
    """A job that has tokens. Marks that follow are delayed."""
    message = submit(store, worker, "running", max_tokens=4000)
    worker.put(message)
    assert wait_until(lambda: store.read("running").num_tokens[0] > 0, 60)
    marks.calls.clear()
    marks.go_on.clear()


def put(store, worker, *job_ids):
    messages = [submit(store, worker, job_id, max_tokens=5, prompt=job_id) for job_id in job_ids]
    for message in messages:
        worker.put(message)
    return messages


def computes(worker, num_steps=20):
    """Whether the engine computes steps with tokens now."""
    before = worker.pipeline.loop.batch.num_steps
    return wait_until(lambda: worker.pipeline.loop.batch.num_steps > before + num_steps, 10)


@pytest.mark.usefixtures("running")
def test_running_jobs_continue_while_a_new_one_waits_for_its_mark(store, worker, marks):
    (new,) = put(store, worker, "new")
    assert wait_until(lambda: marks.calls == [["new"]], 60)
    # While Redis does not answer, the engine computes the job that runs, and not the new one
    assert computes(worker)
    assert worker.status().num_running == 1
    # And jobs that come meanwhile are marked by the next call, together
    others = put(store, worker, "b", "c", "d")
    assert wait_until(lambda: worker.status().num_waiting == 4, 60)
    assert computes(worker)
    marks.go_on.set()
    for message in (new, *others):
        assert message.last_answer()[1].result().token_ids == [null_token(7, 0, at) for at in range(5)]
    assert sorted(job_id for call in marks.calls for job_id in call) == ["b", "c", "d", "new"]
    assert not store.redis.exists(keys.suspects("w1"))


def test_a_burst_needs_one_mark(store, worker, marks):
    marks.go_on.clear()
    put(store, worker, "first")
    assert wait_until(lambda: marks.calls, 60)
    # An engine without other work waits for the answer; meanwhile jobs come
    messages = put(store, worker, *"abcdefgh")
    assert wait_until(lambda: worker.status().num_waiting == 9, 60)
    marks.go_on.set()
    for message in messages:
        message.last_answer()
    assert marks.calls == [["first"], [*"abcdefgh"]]


@pytest.mark.usefixtures("running")
def test_a_job_that_was_lost_before_its_mark_is_not_computed(store, worker, marks, monkeypatch):
    computed = set()
    submit_step = worker._engine._executor.submit

    def spy(step):
        computed.update(sequence.request_id.split("#")[0] for sequence in step.guests.sequences)
        return submit_step(step)

    monkeypatch.setattr(worker._engine._executor, "submit", spy)
    (new,) = put(store, worker, "new")
    assert wait_until(lambda: marks.calls, 60)
    # When another worker gets the job
    store.redis.set(keys.lease("w2"), "1")
    store.redis.hset(keys.job("new"), mapping={"owner": "w2", "epoch": 7})
    marks.go_on.set()
    # Then this one drops it, and runs the other
    assert new.last_answer() == ("dropped", None)
    assert computed == {"running"}
    assert store.read("new").fields["suspect"] == "0"


def test_a_drain_waits_for_the_mark_and_releases_the_job_without_suspicion(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    marks = SlowMarks(worker)
    marks.go_on.clear()
    put(store, worker, "new")
    assert wait_until(lambda: marks.calls, 60)
    drain = threading.Thread(target=leave, args=(worker,))
    drain.start()
    assert wait_until(lambda: not worker.pipeline.loop._thread.is_alive(), 60)
    marks.go_on.set()
    drain.join(60)
    assert not drain.is_alive()
    record = store.read("new")
    # The confirmation may have come before the end: a token does no harm.
    assert record.state is JobState.QUEUED
    assert record.fields["suspect"] == "0"
    assert not store.redis.exists(keys.suspects("w1"))


def test_no_job_is_marked_while_a_first_token_cannot_be_sent(store, worker, marks, monkeypatch):
    """The job with that token is still a suspect: a solo job would be blamed together with it."""
    step, is_full = worker._store.step, threading.Event()

    def full_step(*args):
        if is_full.is_set():
            raise StorageFull("Redis is at its memory limit")
        return step(*args)

    monkeypatch.setattr(worker._store, "step", full_step)
    marks.go_on.clear()
    first = submit(store, worker, "first", max_tokens=400)
    worker.put(first)
    assert wait_until(lambda: marks.calls == [["first"]], 60)
    is_full.set()
    marks.go_on.set()
    # Before the first token, a second job may be marked.
    assert computes(worker)
    (second,) = put(store, worker, "second")
    assert wait_until(lambda: worker.status().num_waiting == 1, 60)
    assert computes(worker)
    assert marks.calls == [["first"]]
    is_full.clear()
    for message, num_tokens in ((first, 400), (second, 5)):
        assert len(message.last_answer()[1].result().token_ids) == num_tokens


def test_steps_wait_for_marks_only_while_most_are_fast(store, worker, marks):
    loop, mark = worker.pipeline.loop, worker._store.mark

    def run_jobs(prefix, num_jobs):
        for index in range(num_jobs):
            (message,) = put(store, worker, f"{prefix}{index}")
            message.last_answer()

    def slow_mark(*args):
        time.sleep(0.02)
        return mark(*args)

    worker._store.mark = slow_mark
    run_jobs("slow", 7)
    assert not loop.awaits_marks
    worker._store.mark = mark
    run_jobs("fast", 30)
    assert loop.awaits_marks
