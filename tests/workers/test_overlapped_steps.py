"""A worker whose steps overlap: the same tokens, also after a stop string, a cancel and a takeover."""

from __future__ import annotations

import pytest
from harness import leave, make_worker, submit

from pagefleet.api.contract.messages import JobState
from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.attempt.engine_loop import EngineLoop
from pagefleet.workers.threads.polling import wait_until


class Listener:
    """Aborts `victim` while a step waits for the marks of others, and counts the steps of the metrics."""

    loop: EngineLoop
    victim = ""
    valid = True
    num_steps = 0

    def before_prefill(self, _):
        self.loop.abort(self.victim)

    def on_step(self, _started_at, _step):
        self.num_steps += 1

    def tick(self): ...

    def on_tokens(self, _): ...

    def on_no_token(self, _): ...


def tokens(seed: int, count: int) -> list[int]:
    return [null_token(seed, 0, position) for position in range(count)]


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1", drain_s=0.0, overlap_steps=True)
    worker.start()
    yield worker
    leave(worker)


def test_jobs_of_all_kinds_share_its_steps(store, worker):
    """Given jobs that end by length and by a stop string, with rules and with logprobs."""
    kinds = [{}, {"stop": ["a"]}, {"repetition_penalty": 1.3}, {"logprobs": 2}, {"speculate": False}]
    messages = [
        submit(store, worker, f"job-{index}", max_tokens=60, seed=index, **kinds[index % len(kinds)])
        for index in range(40)
    ]
    for message in messages:
        worker.put(message)
    for index, message in enumerate(messages):
        kind, record = message.last_answer()
        assert (kind, record.state) == ("ended", JobState.DONE)
        result, expected = record.result(), tokens(index, 60)
        if index % len(kinds) == 1 and ord("a") in expected:
            end = expected.index(ord("a"))
            assert result.token_ids == expected[: end + 1]
            assert (result.text, result.finish_reason) == (bytes(expected[:end]).decode(), "stop")
        else:
            assert (result.token_ids, result.finish_reason) == (expected, "length")
    assert worker.pipeline.loop.batch.max_size >= 20
    assert wait_until(lambda: not worker._engine.has_unfinished_requests, 60)


def test_another_worker_continues_where_it_left(store):
    first = make_worker(store, "w1", drain_s=0.0, overlap_steps=True)
    first.start()
    messages = [submit(store, first, f"job-{index}", max_tokens=400, seed=index) for index in range(6)]
    for message in messages:
        first.put(message)
    assert wait_until(lambda: all(store.read(f"job-{index}").num_tokens[0] > 20 for index in range(6)), 60)
    store.cancel("job-5")
    assert messages[5].last_answer()[1].state is JobState.CANCELLED
    leave(first, num_held=5)
    second = make_worker(store, "w2", drain_s=0.0, step_time_s=0.001, overlap_steps=True)
    second.start()
    for message in messages[:5]:
        second.put(message)
    for index, message in enumerate(messages[:5]):
        # The first answer is the first worker's: it put the message back.
        answers = [message.last_answer()]
        while answers[-1][0] == "put back":
            answers.append(message.last_answer())
        kind, record = answers[-1]
        assert (kind, record.attempts) == ("ended", 2)
        assert record.result().token_ids == tokens(index, 400)
    leave(second)


def test_a_step_that_lost_all_its_sequences_is_not_timed():
    null = NullOptions(step_time_s=0)
    config = EngineConfig(model="null", backend="null", overlap_steps=True, null=null)
    engine, listener = LLMEngine.from_config(config), Listener()
    loop = listener.loop = EngineLoop(engine, listener, listener, listener)
    engine.add_request(EngineRequest("running", [1], SamplingParams(speculate=False)))
    loop._step()
    engine.add_request(EngineRequest("new", [2], SamplingParams(max_tokens=3)), is_confirmed=False)
    listener.victim = "running"
    loop._step()
    assert len(loop._started_at) == engine.num_in_flight == 1
    engine.confirm("new")
    while engine.has_unfinished_requests:
        loop._step()
    assert listener.num_steps == 4
    assert not loop._started_at
