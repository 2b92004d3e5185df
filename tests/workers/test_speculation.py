"""Steps that accept several tokens of a job: its log, its stream, a takeover and the metrics."""

from __future__ import annotations

from harness import leave, make_worker, submit

from pagefleet.api.contract.messages import JobState
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

SEED, PERIOD, NUM_TOKENS = 7, 5, 300


def right_tokens(choice: int) -> list[int]:
    return [null_token(SEED, choice, position, PERIOD) for position in range(NUM_TOKENS)]


def value(worker, name):
    return worker.metrics.registry.get_sample_value(f"pagefleet_spec_decode_{name}_total", {"model": "null"})


def test_a_text_that_repeats_itself_takes_few_steps_and_is_the_same(store):
    worker = make_worker(store, "w1", null_period=PERIOD)
    worker.start()
    for job_id, speculate in (("guessed", True), ("plain", False)):
        num_steps = worker.pipeline.loop.batch.num_steps
        message = submit(store, worker, job_id, max_tokens=NUM_TOKENS, speculate=speculate)
        worker.put(message)
        assert message.last_answer()[0] == "ended"
        record = store.read(job_id)
        assert record.has_whole_log
        result = record.result()
        assert result.token_ids == right_tokens(0)
        assert result.text == bytes(result.token_ids).decode()
        num_steps = worker.pipeline.loop.batch.num_steps - num_steps
        assert num_steps < NUM_TOKENS / 4 if speculate else num_steps == NUM_TOKENS
    drafted, accepted = value(worker, "num_draft_tokens"), value(worker, "num_accepted_tokens")
    leave(worker)
    assert NUM_TOKENS / 2 < accepted <= drafted < NUM_TOKENS


def test_another_worker_goes_on_in_the_middle(store):
    """The first worker speculates and the second does not: the text is the same."""
    first = make_worker(store, "w1", null_period=PERIOD, drain_s=0.0, step_time_s=0.05)
    first.start()
    message = submit(store, first, "a", n=2, max_tokens=NUM_TOKENS)
    first.put(message)
    assert wait_until(lambda: min(store.read("a", with_log=False).num_tokens) > 20, 60)
    leave(first, num_held=1)
    assert store.read("a").state is JobState.QUEUED
    second = make_worker(store, "w2", null_period=PERIOD, speculate=0)
    second.start()
    second.put(message)
    kind, record = message.last_answer()
    leave(second)
    assert (kind, record.state, record.attempts) == ("ended", JobState.DONE, 2)
    result = store.read("a").result()
    assert [choice.token_ids for choice in result.choices] == [right_tokens(0), right_tokens(1)]
