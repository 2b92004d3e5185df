"""The trace of an engine's first steps: what is in it, and that it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, NullOptions, SamplingParams


def make_engine(file: Path, num_steps: int) -> LLMEngine:
    null = NullOptions(step_time_s=0.002)
    return LLMEngine.from_config(
        EngineConfig(model="null", backend="null", null=null, trace_file=file, trace_steps=num_steps)
    )


def run(engine: LLMEngine, num_tokens: int) -> None:
    for name in ("a", "b"):
        engine.add_request(EngineRequest(name, [1, 2, 3], SamplingParams(max_tokens=num_tokens)))
    while engine.has_unfinished_requests:
        engine.step()


def events(file: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    return [event for event in found if event["name"] == name]


def test_the_first_steps_with_their_batches_and_no_more(tmp_path):
    file = tmp_path / "there" / "trace.json"
    engine = make_engine(file, 3)
    run(engine, 8)
    steps = events(file, "step")
    assert [step["args"]["num_tokens"] for step in steps] == [6, 2, 2]
    assert steps[0]["args"]["num_prefills"] == 2
    assert steps[2]["args"]["context_lens"] == [4, 4]
    assert [step["args"]["first_tokens"] for step in steps] == [["a", "b"], [], []]
    # A step of the null backend begins when the one before should have ended.
    assert sum(step["dur"] for step in steps) > 3000
    for step in steps:
        end = step["ts"] + step["dur"]
        assert sum(step["ts"] <= each["ts"] <= end for each in events(file, "commit")) == 1
    assert len(events(file, "schedule")) >= 3
    assert any(event["args"]["name"] == "MainThread" for event in events(file, "thread_name"))
    size = file.stat().st_mtime_ns
    run(engine, 2)
    engine.close()
    assert file.stat().st_mtime_ns == size


def test_fewer_steps_are_written_at_the_end_and_none_without_being_asked(tmp_path):
    file = tmp_path / "trace.json"
    engine = make_engine(file, 100)
    run(engine, 2)
    assert not file.exists()
    engine.close()
    assert len(events(file, "step")) == 2
    engine = make_engine(tmp_path / "none.json", 0)
    run(engine, 2)
    engine.close()
    assert not (tmp_path / "none.json").exists()


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    engine = make_engine(tmp_path / "trace.json", 1)
    (tmp_path / "trace.json").mkdir()
    run(engine, 3)
    assert "cannot be written" in caplog.text
