"""Structured output through the fleet: valid and rejected requests, and a takeover."""

from __future__ import annotations

import json
import threading
import time

import pytest
from click.testing import CliRunner
from harness import RecordedMessage, leave, make_worker, submit

from pagefleet.api import InvalidRequest
from pagefleet.api.cli.main import main
from pagefleet.api.contract.messages import JobState
from pagefleet.workers.attempt import preparation
from pagefleet.workers.threads.polling import wait_until

POINT = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in ("x", "y", "z")},
    "required": ["x", "y", "z"],
    "additionalProperties": False,
}
COLOURS = ["red", "green", "blue"]


class TestThroughTheFleet:
    def test_json_of_a_schema(self, fleet):
        result = fleet.generate("A point:", structured_outputs={"json_schema": POINT}).result()
        assert set(json.loads(result.text)) == {"x", "y", "z"}
        assert result.finish_reason == "stop"

    def test_a_choice_in_a_chat(self, fleet):
        chat = [{"role": "user", "content": "Which colour?"}]
        assert fleet.chat(chat, structured_outputs={"choice": COLOURS}).text() in COLOURS

    def test_the_workers_refusal_names_the_reason(self, fleet):
        stream = fleet.generate("x", structured_outputs={"json_schema": {"type": "objekt"}})
        with pytest.raises(
            InvalidRequest, match=r"^structured_outputs\.json_schema cannot be used: Invalid type: objekt\.$"
        ):
            stream.result()
        # The library raises a plain Exception for it.
        stream = fleet.generate("x", structured_outputs={"grammar": "root ::= nothing_there"})
        with pytest.raises(
            InvalidRequest,
            match=r"^structured_outputs\.grammar cannot be used: Rule 'nothing_there' not found\.$",
        ):
            stream.result()

    @pytest.mark.parametrize(
        ("wanted", "sentence"),
        [
            ({}, "give exactly one of json_schema"),
            ({"regex": "a", "choice": ["a"]}, "got regex and choice"),
            ({"regex": "a", "wind_down": True}, "wind_down: needs json_schema"),
            ({"regexp": "a"}, "regexp"),
            ({"json_schema": [1]}, "json_schema"),
            ({"json_schema": {"const": {1, 2}}}, "json_schema"),
            ({"choice": []}, "choice"),
            ("a", "structured_outputs"),
        ],
    )
    def test_a_wrong_shape_is_refused_before_anything_is_sent(self, fleet, wanted, sentence):
        with pytest.raises(InvalidRequest, match=sentence) as refusal:
            fleet.generate("x", structured_outputs=wanted)
        assert "\n" not in refusal.value.message

    def test_from_the_shell(self, null_stack, tmp_path, monkeypatch):
        monkeypatch.setenv("REDIS_URL", null_stack.redis_url)
        file = tmp_path / "point.json"
        file.write_text(json.dumps(POINT))

        def generate(*options):
            return CliRunner().invoke(main, ["generate", "A point:", *map(str, options)])

        assert set(json.loads(generate("--json-schema", file, "--wind-down").output)) == {"x", "y", "z"}
        assert generate("--choice", "red", "--choice", "blue").output.strip() in ("red", "blue")
        assert generate("--regex", "[0-9]{3}").output.strip().isdigit()
        file.write_text("start: 'no'")
        assert "not JSON" in generate("--json-schema", file).output


@pytest.fixture
def worker(store):
    worker = make_worker(store, "w1", drain_s=0.0)
    worker.start()
    yield worker
    leave(worker)


@pytest.fixture
def may_go_on(monkeypatch):
    """A compiler that takes as long as the test wants."""
    event, prepare = threading.Event(), preparation.engine_request

    def slow(request_id, request, *rest):
        if request.structured_outputs is not None:
            event.wait(60)
        return prepare(request_id, request, *rest)

    monkeypatch.setattr(preparation, "engine_request", slow)
    yield event
    event.set()


def test_others_go_on_while_a_grammar_is_compiled(store, worker, may_go_on):
    # When one job waits for its grammar and a second one arrives later
    waiting = submit(store, worker, "waits", structured_outputs={"choice": COLOURS})
    plain = submit(store, worker, "plain", max_tokens=5)
    worker.put(waiting)
    worker.put(plain)
    # Then the second one ends first.
    assert plain.last_answer()[1].state is JobState.DONE
    assert store.read("waits").num_tokens == [0]
    may_go_on.set()
    kind, record = waiting.last_answer()
    assert (kind, record.state) == ("ended", JobState.DONE)
    assert record.result().text in COLOURS


def test_batch_work_that_waits_for_its_grammar_has_no_seat_to_give_back(store, worker, may_go_on):
    running = submit(store, worker, "running", lane="batch", max_tokens=4000)
    worker.put(running)
    assert running.answers.get(timeout=60)[0] == "started"
    waiting = submit(store, worker, "waits", lane="batch", structured_outputs={"choice": COLOURS})
    worker.put(waiting)
    assert wait_until(lambda: "waits" in worker.status().job_ids, 60)
    # One place is needed. The running job is released, although the other one came last.
    assert worker.pipeline.release_batch_jobs(1) == 1
    assert running.last_answer() == ("put back", None)
    assert store.read("running").state is JobState.QUEUED
    may_go_on.set()
    assert waiting.last_answer()[1].result().text in COLOURS


def test_a_drain_does_not_wait_for_grammars_and_gives_the_jobs_back(store, may_go_on):
    first = make_worker(store, "w1", drain_s=0.2)
    first.start()
    # Given two jobs that are being compiled and two that wait for a compiler.
    job_ids = [f"job-{index}" for index in range(4)]
    for job_id in job_ids:
        first.put(submit(store, first, job_id, seed=3, structured_outputs={"choice": COLOURS}))
    assert wait_until(lambda: set(job_ids) == set(first.status().job_ids), 60)
    begun_at = time.monotonic()
    leave(first, num_held=4)
    assert time.monotonic() - begun_at < 10
    # Then all are queued and not started, and no death is counted.
    for job_id in job_ids:
        record = store.read(job_id)
        assert (record.state, record.num_tokens) == (JobState.QUEUED, [0])
    may_go_on.set()
    # A grammar that is compiled later has no effect: only the next worker runs each job, once.
    second = make_worker(store, "w2", drain_s=0.0)
    second.start()
    for job_id in job_ids:
        again = RecordedMessage(job_id)
        second.put(again)
        kind, record = again.last_answer()
        assert (kind, record.state, record.attempts) == ("ended", JobState.DONE, 2)
        assert record.result().text in COLOURS
        assert record.fields.get("fruitless") is None
    leave(second)


def test_another_worker_goes_on_in_the_middle_of_a_document(store):
    wanted = {"json_schema": {"type": "array", "items": POINT, "minItems": 5, "maxItems": 5}}
    fields = {"structured_outputs": wanted, "seed": 3, "max_tokens": 400}
    first = make_worker(store, "w1", drain_s=0.0)
    first.start()
    calm = submit(store, first, "calm", **fields)
    first.put(calm)
    whole = calm.last_answer()[1].result()
    assert len(json.loads(whole.text)) == 5
    leave(first)
    # When a slow worker stops in the middle of the same document
    first = make_worker(store, "w3", drain_s=0.0, step_time_s=0.05)
    first.start()
    first.put(submit(store, first, "moved", **fields))
    assert wait_until(lambda: store.read("moved").num_tokens[0] > 20, 60)
    leave(first)
    num_tokens = store.read("moved").num_tokens[0]
    assert 20 < num_tokens < len(whole.token_ids)
    # Then the next worker rebuilds the grammar's state from the log and generates the same tokens.
    second = make_worker(store, "w2", drain_s=0.0)
    second.start()
    try:
        moved = RecordedMessage("moved")
        second.put(moved)
        result = moved.last_answer()[1].result()
    finally:
        leave(second)
    assert result.attempts == 2
    assert (result.token_ids, result.text) == (whole.token_ids, whole.text)
