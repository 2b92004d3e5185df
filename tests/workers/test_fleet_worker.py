"""One worker and a real server: how a message is settled in each case of the protocol."""

from __future__ import annotations

import threading
import time

import pytest
from harness import RecordedMessage, leave, make_worker, submit

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ContextTooLong, InvalidRequest, QueueFull, UnknownParameter
from pagefleet.api.contract.messages import JobState
from pagefleet.engine.errors import EngineFailedError
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    yield worker
    leave(worker)


def expected_tokens(seed: int, count: int) -> list[int]:
    return [null_token(seed, 0, position) for position in range(count)]


def test_a_job_runs_from_its_message_to_its_result(store, worker):
    message = submit(store, worker, "a", max_tokens=20)
    worker.put(message)
    kind, record = message.last_answer()
    assert kind == "ended"
    assert record.state is JobState.DONE
    assert record.result().token_ids == expected_tokens(7, 20)
    assert record.result().finish_reason == "length"
    assert record.result().text == bytes(expected_tokens(7, 20)).decode()
    # The job is closed: removed from its ledger, with a TTL.
    assert store.redis.zcard(keys.open_jobs("pagefleet.null.interactive")) == 0
    assert 0 < store.redis.ttl(keys.job("a")) <= store.settings.result_ttl_s


def test_sixty_four_jobs_share_the_batch(store, worker):
    messages = [submit(store, worker, f"job-{index}", max_tokens=30, seed=index) for index in range(64)]
    for message in messages:
        worker.put(message)
    for index, message in enumerate(messages):
        _, record = message.last_answer()
        assert record.result().token_ids == expected_tokens(index, 30)
    assert worker.pipeline.loop.batch.max_size >= 32


def test_a_message_whose_job_is_unknown_is_dropped(worker):
    message = RecordedMessage("never-submitted")
    worker.put(message)
    assert message.last_answer() == ("dropped", None)


def test_a_second_message_of_an_ended_job_closes_it_again(store, worker):
    first = submit(store, worker, "a", max_tokens=2)
    worker.put(first)
    first.last_answer()
    second = RecordedMessage("a")
    worker.put(second)
    kind, record = second.last_answer()
    assert (kind, record.state) == ("ended", JobState.DONE)
    assert record.attempts == 1


def test_a_job_that_a_live_worker_runs_is_left_to_it(store, worker):
    other = make_worker(store, "w2")
    other.lease.start()
    message = submit(store, worker, "a", max_tokens=500)
    store.claim(["a"], "w2", "{}")
    worker.put(message)
    assert message.last_answer() == ("dropped", None)
    assert store.read("a").fields["owner"] == "w2"
    other.lease.release()


def test_a_dead_workers_job_goes_on_where_its_log_ends(store, worker):
    # Given a job with 5 tokens in its log, whose worker is dead.
    message = submit(store, worker, "a", max_tokens=40)
    ghost = make_worker(store, "ghost", step_time_s=0.05)
    ghost.start()
    ghost.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] >= 5, 60)
    ghost.pipeline.loop.stop()
    ghost.lease.release()
    logged = len(store.read("a").result().token_ids)
    assert 5 <= logged < 40
    # When its message reaches another worker.
    again = RecordedMessage("a")
    worker.put(again)
    # Then the result equals that of an uninterrupted run.
    _, record = again.last_answer()
    assert record.result().token_ids == expected_tokens(7, 40)
    assert record.result().text == bytes(expected_tokens(7, 40)).decode()
    assert record.attempts == 2


def test_a_fenced_worker_lets_go_and_writes_nothing(store, worker):
    message = submit(store, worker, "a", max_tokens=4000)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 3, 60)
    # Another worker took the job over: its epoch is higher.
    store.beat(worker.status().model_copy(update={"worker_id": "w9"}), 60)
    store.redis.hset(keys.job("a"), mapping={"epoch": "99", "owner": "w9"})
    assert message.last_answer() == ("dropped", None)
    length = store.redis.llen(keys.log("a"))
    time.sleep(20 * 0.005)
    assert store.redis.llen(keys.log("a")) == length
    assert wait_until(lambda: worker.status().num_free_blocks == worker.status().num_blocks, 60)


def test_a_log_that_lost_its_tail_is_sent_again(store, worker):
    """The server restarted without its last second of writes. The worker still has the tokens."""
    message = submit(store, worker, "a", max_tokens=400)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 20, 60)
    with store.redis.pipeline(transaction=True) as pipe:
        entries = store.redis.lrange(keys.log("a"), 0, 4)
        kept = sum(len(entry.token_ids) for entry in store.read("a").entries[:5])
        pipe.delete(keys.log("a"))
        pipe.rpush(keys.log("a"), *entries)
        pipe.hset(keys.job("a"), "n:0", kept)
        pipe.execute()
    _, record = message.last_answer()
    assert record.result().token_ids == expected_tokens(7, 400)


def test_a_job_that_the_server_forgot_is_let_go(store, worker):
    message = submit(store, worker, "a", max_tokens=4000)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 3, 60)
    store.redis.delete(keys.job("a"))
    assert message.last_answer() == ("dropped", None)


def test_cancel_frees_the_blocks_and_keeps_what_was_said(store, worker):
    message = submit(store, worker, "a", max_tokens=4000)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 3, 60)
    store.cancel("a")
    _, record = message.last_answer()
    assert record.state is JobState.CANCELLED
    assert record.finish_reason(0) == "cancelled"
    tokens = record.result().token_ids
    assert tokens == expected_tokens(7, len(tokens))
    assert wait_until(lambda: worker.status().num_free_blocks == worker.status().num_blocks, 60)


def test_a_cancel_reaches_a_job_that_has_no_step(store):
    """The batch has room for one sequence. The second job waits in the engine and must still be cancelled."""
    worker = make_worker(store, "w1", drain_s=0.0)
    worker._engine._scheduler.max_num_seqs = 1
    worker.start()
    running = submit(store, worker, "running", max_tokens=4000)
    waiting = submit(store, worker, "waiting", max_tokens=10)
    worker.put(running)
    worker.put(waiting)
    assert wait_until(lambda: store.read("waiting").state is JobState.RUNNING, 60)
    store.cancel("waiting")
    _, record = waiting.last_answer(10)
    assert record.state is JobState.CANCELLED
    leave(worker)


def test_a_running_job_ends_at_its_deadline(store, worker):
    message = submit(store, worker, "a", max_tokens=4000, deadline_s=1.0)
    worker.put(message)
    _, record = message.last_answer()
    assert record.finish_reason(0) == "deadline"
    assert record.state is JobState.FAILED
    assert 0 < len(record.result().token_ids) < 4000


def test_a_text_that_turns_out_too_long_is_rejected_with_a_reason(store, worker):
    message = submit(store, worker, "a", prompt="x" * 5000)
    worker.put(message)
    _, record = message.last_answer()
    assert record.state is JobState.FAILED
    assert isinstance(record.error.to_error("a"), ContextTooLong)
    assert "5001 tokens" in record.error.message
    assert record.result().token_ids == []


def test_a_bare_message_becomes_a_job(store, worker):
    message = RecordedMessage("bare", {"model": "null", "prompt": "hello", "max_tokens": 3, "seed": 7})
    worker.put(message)
    _, record = message.last_answer()
    assert record.result().token_ids == expected_tokens(7, 3)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"model": "null", "prompt": ""}, InvalidRequest),
        ({"model": "null", "prompt": "x", "max_tokenz": 3}, UnknownParameter),
        ({"model": "null", "prompt_token_ids": [1] * 9999}, ContextTooLong),
        ({"model": "null", "prompt": "x", "temperature": "hot"}, InvalidRequest),
        ({"model": "null", "prompt": "x", "seed": -1}, InvalidRequest),
    ],
)
def test_a_bare_message_is_checked_like_a_clients(worker, fields, error):
    message = RecordedMessage("bare", fields)
    worker.put(message)
    kind, raised = message.last_answer()
    assert kind == "rejected"
    assert type(raised) is error


def test_a_bare_message_counts_against_the_depth_limit(store):
    worker = make_worker(store, "w1", max_queue_depth=1, drain_s=0.0)
    worker.start()
    running = submit(store, worker, "running", max_tokens=4000)
    worker.put(running)
    message = RecordedMessage("bare", {"model": "null", "prompt": "hello"})
    worker.put(message)
    kind, error = message.last_answer()
    assert kind == "rejected"
    assert isinstance(error, QueueFull)
    leave(worker)


def test_a_step_that_fails_once_costs_its_jobs_nothing(store, worker, monkeypatch):
    message = submit(store, worker, "a", max_tokens=200)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 3, 60)

    def explode(scheduled):
        monkeypatch.undo()
        raise RuntimeError("the device fell off")

    monkeypatch.setattr(worker._engine._executor, "execute", explode)
    _, record = message.last_answer()
    assert (record.state, record.attempts) == (JobState.DONE, 1)
    assert record.result().token_ids == expected_tokens(7, 200)


def test_an_engine_that_failed_leaves_its_suspects_and_gives_the_rest_back(store, worker, monkeypatch):
    """The suspect is marked and looks like a job whose worker died. The other job is queued again."""
    messages = [submit(store, worker, name, max_tokens=4000) for name in ("a", "b")]
    for message in messages:
        worker.put(message)
    for name in ("a", "b"):
        assert wait_until(lambda name=name: store.read(name, with_log=False).num_tokens[0] > 3, 60)
    ends = []
    monkeypatch.setattr("pagefleet.workers.fleet_worker.exit_process", ends.append)
    job = worker.pipeline.held.get("a")
    worker.pipeline.loop.stop()
    worker.pipeline.on_engine_failed([job.request_id], EngineFailedError("gone", [job.request_id]))
    assert ends == ["the engine has failed; its jobs return to their queues: gone"]
    a, b = store.read("a"), store.read("b")
    assert (a.state, a.fields["suspect"]) == (JobState.RUNNING, "1")
    assert (b.state, b.fields["suspect"]) == (JobState.QUEUED, "0")
    assert not store.workers()


def test_drain_gives_running_jobs_back_with_their_log(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    message = submit(store, worker, "a", max_tokens=4000)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).num_tokens[0] > 3, 60)
    leave(worker, num_held=1)
    record = store.read("a")
    assert record.state is JobState.QUEUED
    assert record.result().token_ids == expected_tokens(7, record.num_tokens[0])
    assert not store.workers()


def test_the_first_prefill_is_marked_before_it_reaches_the_device(store, worker, monkeypatch):
    """MARK (protocol line 5): the hash has the suspect flag before the first execute."""
    seen = []
    submit_step = worker._engine._executor.submit

    def spy(step):
        seen.extend(store.redis.hget(keys.job("a"), "suspect") for _ in step.guests.sequences)
        return submit_step(step)

    monkeypatch.setattr(worker._engine._executor, "submit", spy)
    message = submit(store, worker, "a", max_tokens=5)
    worker.put(message)
    message.last_answer()
    assert seen[0] == "1"
    assert store.read("a").fields["suspect"] == "0"


def test_suspects_begin_one_at_a_time(store):
    """Protocol line 12: jobs that may have killed a worker are run again alone."""
    worker = make_worker(store, "w1")
    seen = []
    mark = worker.pipeline.publisher._store.mark

    def watched(worker_id, epochs):
        lost = mark(worker_id, epochs)
        seen.append(store.redis.smembers(keys.suspects("w1")))
        return lost

    worker.pipeline.publisher._store.mark = watched
    messages = [submit(store, worker, f"job-{index}", max_tokens=3) for index in range(4)]
    for message in messages[:3]:
        store.redis.hset(keys.job(message.job_id), "solo", "1")
    worker.start()
    for message in messages:
        worker.put(message)
    assert {message.last_answer()[0] for message in messages} == {"ended"}
    assert [len(suspects) for suspects in seen] == [1, 1, 1, 1]
    assert not store.redis.exists(keys.suspects("w1"))
    leave(worker)


def test_a_late_step_of_a_lost_attempt_does_not_meet_the_next(store):
    """The worker loses a job while a step computes it, and claims it again before the step ends."""
    worker = make_worker(store, "w1")
    first = submit(store, worker, "j", max_tokens=60)
    worker.start()
    worker.put(first)
    assert wait_until(lambda: store.read("j").num_tokens[0] > 3, 60)
    epoch = store.read("j").fields["epoch"]
    # The state that another worker leaves after a takeover and a release.
    store.redis.hset(keys.job("j"), mapping={"state": "Q", "epoch": int(epoch) + 5})
    kind, record = first.last_answer()
    assert kind == "ended"
    assert int(record.fields["epoch"]) == int(epoch) + 6
    assert record.result().token_ids == [null_token(7, 0, at) for at in range(60)]
    assert not worker.pipeline.held
    leave(worker)


def test_a_batch_job_that_is_being_released_counts_until_redis_answers(store, worker, monkeypatch):
    """BatchPreemption asks every 0.1 s. A slow RELEASE must not cost a second batch job its place."""
    messages = {}
    for job_id in ("first", "second"):
        messages[job_id] = submit(store, worker, job_id, lane="batch", max_tokens=4000)
        worker.put(messages[job_id])
        assert messages[job_id].answers.get(timeout=60)[0] == "started"
    release, is_called, may_go_on = worker._store.release, threading.Event(), threading.Event()

    def slow_release(*args):
        is_called.set()
        assert may_go_on.wait(60)
        return release(*args)

    monkeypatch.setattr(worker._store, "release", slow_release)
    assert worker.pipeline.release_batch_jobs(1) == 1
    assert is_called.wait(60)
    worker.pipeline.release_batch_jobs(1)
    may_go_on.set()
    assert messages["second"].last_answer() == ("put back", None)
    # The commands of the publisher run in order: this one is answered after all releases.
    worker.pipeline.publisher.abandon(["unknown"])
    assert store.read("first").state is JobState.RUNNING
