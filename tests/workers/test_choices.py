"""A job with several choices on one worker and the next: separate logs, no duplicates, one end."""

from __future__ import annotations

import json
import math

import pytest
from harness import leave, make_worker, submit

from pagefleet.api import DeadlineExceeded
from pagefleet.api.broker.closing import failure_of
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState, TokenLogprobs
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.engine.outputs import TokenLogprobs as EngineLogprobs
from pagefleet.engine.text.tokenizer import ByteTokenizer
from pagefleet.workers import replay as replaying
from pagefleet.workers.job.output_encoder import OutputEncoder, TokenFieldCache
from pagefleet.workers.threads.polling import wait_until

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
    first = make_worker(store, "w1", drain_s=0.0, step_time_s=0.03)
    first.start()
    # The other choices do not have it this early.
    end = next(token for token in tokens(1, 40)[19:] if token not in tokens(0, 90) + tokens(2, 90))
    num_first = next(at for at in range(19, 40) if tokens(1, 40)[at] == end) + 1
    message = submit(store, first, "a", n=3, max_tokens=4000, min_tokens=20, stop_token_ids=[end])
    first.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).finish_reason(1) == "stop", 60)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 2, 60)
    leave(first, num_held=1)
    record = store.read("a")
    assert record.state is JobState.QUEUED
    assert record.num_tokens[1] == num_first
    second = make_worker(store, "w2", drain_s=0.0)
    second.start()
    second.put(message)
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
    worker.put(message)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 3, 60)
    store.cancel("a")
    kind, record = message.last_answer()
    assert (kind, record.state) == ("ended", JobState.CANCELLED)
    assert [record.finish_reason(choice) for choice in range(4)] == ["cancelled"] * 4
    assert wait_until(lambda: worker._engine.num_free_blocks == worker._engine.info.num_blocks, 60)


def test_more_choices_than_a_call_takes(store, worker):
    """128 choices with logprobs are more items, and larger, than one STEP may be."""
    message = submit(store, worker, "a", n=128, max_tokens=9, logprobs=1)
    other = submit(store, worker, "b", max_tokens=9)
    worker.put(message)
    worker.put(other)
    assert other.last_answer()[1].state is JobState.DONE
    assert message.last_answer()[1].state is JobState.DONE
    result = store.read("a").result()
    assert [choice.token_ids for choice in result.choices] == [tokens(choice, 9) for choice in range(128)]
    assert all(len(choice.logprobs) == 9 for choice in result.choices)


def test_the_hash_and_the_request_must_agree_on_how_many(store, worker):
    message = submit(store, worker, "a", n=2, max_tokens=9)
    store.redis.hset(keys.job("a"), "num_choices", 3)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).state is JobState.DEAD, 60)


def test_a_replay_has_the_same_choices(store, worker):
    message = submit(store, worker, "a", n=3, max_tokens=9)
    worker.put(message)
    message.last_answer()
    leave(worker)
    replayed = replaying.replay(store.read("a"), worker._engine, worker.card)
    assert [choice.index for choice in replayed] == [0, 1, 2]
    assert all(choice.first_difference is None for choice in replayed)


def test_a_log_without_the_logprobs_that_are_asked_for_is_none(store, worker):
    """Also a log with logprobs that the request does not ask for. The worker then runs the next job."""
    bare = {"offset": 0, "token_ids": [1], "texts": ["a"]}
    told = bare | {"logprobs": [{"token_id": 1, "logprob": -0.5, "text": "a", "rank": 1}]}
    for job_id, entry, fields in (("a", bare, {"logprobs": 0}), ("b", told, {})):
        message = submit(store, worker, job_id, max_tokens=9, **fields)
        store.redis.rpush(keys.log(job_id), json.dumps(entry))
        store.redis.hset(keys.job(job_id), "n:0", 1)
        worker.put(message)
        assert wait_until(lambda j=job_id: store.read(j, with_log=False).state is JobState.DEAD, 60)
    after = submit(store, worker, "c", max_tokens=9)
    worker.put(after)
    assert after.last_answer()[1].state is JobState.DONE


def test_a_job_is_marked_before_its_first_choice_only(store, worker, monkeypatch):
    """The other choices start when the first one has a token, so that the job is not a suspect any more."""
    marked = []
    mark = worker.pipeline.publisher.mark
    monkeypatch.setattr(worker.pipeline.publisher, "mark", lambda ids: marked.extend(ids) or mark(ids))
    message = submit(store, worker, "a", n=5, max_tokens=20, prompt="x" * 200)
    worker.put(message)
    assert message.last_answer()[1].state is JobState.DONE
    assert len(marked) == 1


def test_a_job_takes_a_seat_for_each_choice(store, worker):
    num_seats = worker.settings.max_num_seqs
    message = submit(store, worker, "a", n=num_seats, max_tokens=4000)
    assert worker.lanes_with_room(1, 0) != []
    worker.put(message)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 0, 60)
    assert worker.lanes_with_room(1, 0) == []
    assert worker.lanes_with_room(1, 1) == []


def test_a_job_that_is_cut_off_says_so_whatever_its_first_choice_did(store, worker):
    end = next(token for token in tokens(0, 40)[19:] if token not in tokens(1, 90))
    fields = {"n": 2, "max_tokens": 4000, "min_tokens": 20, "stop_token_ids": [end]}
    message = submit(store, worker, "a", **fields)
    worker.put(message)
    assert wait_until(lambda: store.read("a", with_log=False).finish_reason(0) == "stop", 60)
    store.cancel("a")
    _, record = message.last_answer()
    if record.finish_reason(1) == "cancelled":
        assert record.ended_by == "cancelled"
    fields = {"state": "F", "num_choices": "2", "fin:0": "stop", "fin:1": "deadline"}
    assert isinstance(failure_of(JobRecord("x", fields)), DeadlineExceeded)


def test_numbers_that_json_has_no_word_for():
    encoder = OutputEncoder(TokenFieldCache(ByteTokenizer()))
    found = [EngineLogprobs(65, math.nan, 1, ((66, -math.inf), (0xC3, -0.1234567)))]
    (encoded,) = encoder.logprobs(found)
    assert TokenLogprobs.model_validate_json(encoded.model_dump_json()) == encoded
    assert (encoded.logprob, encoded.text, encoded.as_bytes) == (-9999.0, "A", b"A")
    impossible, half = encoded.top
    assert impossible.logprob == -9999.0
    assert (half.logprob, half.text, half.as_bytes) == (-0.123457, "\ufffd", b"\xc3")


def test_more_logprobs_of_a_prompt_than_fit_are_refused(store, worker):
    message = submit(store, worker, "a", prompt="x" * 1000, prompt_logprobs=20)
    worker.put(message)
    _, record = message.last_answer()
    assert (record.state, record.error.param) == (JobState.FAILED, "prompt_logprobs")
    assert "16384" in record.error.message
