"""A job of several choices on one worker and the next: each log its own, none told twice, one end."""

from __future__ import annotations

import pytest
from harness import leave, make_worker, submit

from pagefleet.api import keys
from pagefleet.api.messages import JobState
from pagefleet.engine.backends.null import null_token
from pagefleet.workers import replay as replaying
from pagefleet.workers.engine_loop import wait_until

SEED = 7


def tokens(choice, count):
    return [null_token(SEED, choice, position) for position in range(count)]


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    yield worker
    leave(worker)


def test_a_choice_that_has_ended_is_left_alone_by_the_next_attempt(store):
    first = make_worker(store, "w1", drain_s=0.0)
    first.start()
    # The others don't have it so early.
    end = next(token for token in tokens(1, 40)[19:] if token not in tokens(0, 90) + tokens(2, 90))
    num_first = next(at for at in range(19, 40) if tokens(1, 40)[at] == end) + 1
    message = submit(store, first, "a", n=3, max_tokens=4000, min_tokens=20, stop_token_ids=[end])
    first.admission.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).finish_reason(1) == "stop", 10)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 2, 10)
    leave(first, num_held=1)
    record = store.read("a")
    assert record.state is JobState.QUEUED
    assert record.num_tokens[1] == num_first
    second = make_worker(store, "w2", drain_s=0.0)
    second.start()
    second.admission.put(message)
    kind, record = message.last_answer()
    leave(second)
    assert (kind, record.state, record.attempts) == ("ended", JobState.DONE, 2)
    result = store.read("a").result()
    assert result.choices[1].token_ids == tokens(1, num_first)
    for choice in (0, 2):
        got = result.choices[choice].token_ids
        assert got == tokens(choice, len(got))
        assert got[-1] == end or len(got) == 4000
    assert store.read("a").has_whole_log


def test_a_job_ends_with_its_last_choice_and_a_cancel_ends_them_all(store, worker):
    message = submit(store, worker, "a", n=4, max_tokens=4000)
    worker.admission.put(message)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 3, 10)
    store.cancel("a")
    kind, record = message.last_answer()
    assert (kind, record.state) == ("ended", JobState.CANCELLED)
    assert [record.finish_reason(choice) for choice in range(4)] == ["cancelled"] * 4
    assert wait_until(lambda: worker._engine.num_free_blocks == worker._engine.info.num_blocks, 10)


def test_more_choices_than_a_call_takes(store, worker):
    """128 choices with logprobs: more items, and more weight, than one STEP is allowed."""
    message = submit(store, worker, "a", n=128, max_tokens=9, logprobs=1)
    other = submit(store, worker, "b", max_tokens=9)
    worker.admission.put(message)
    worker.admission.put(other)
    assert other.last_answer()[1].state is JobState.DONE
    assert message.last_answer(30)[1].state is JobState.DONE
    result = store.read("a").result()
    assert [choice.token_ids for choice in result.choices] == [tokens(choice, 9) for choice in range(128)]
    assert all(len(choice.logprobs) == 9 for choice in result.choices)


def test_the_hash_and_the_request_must_agree_on_how_many(store, worker):
    message = submit(store, worker, "a", n=2, max_tokens=9)
    store.redis.hset(keys.job("a"), "num_choices", 3)
    worker.admission.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).state is JobState.DEAD, 10)


def test_a_replay_has_the_same_choices(store, worker):
    message = submit(store, worker, "a", n=3, max_tokens=9)
    worker.admission.put(message)
    message.last_answer()
    leave(worker)
    replayed = replaying.replay(store.read("a"), worker._engine, worker.card)
    assert [choice.index for choice in replayed] == [0, 1, 2]
    assert all(choice.first_difference is None for choice in replayed)
