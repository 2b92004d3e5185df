"""`pagefleet bench --plane`: how much later than its step a token arrives, and the CPU time on the way."""

from __future__ import annotations

import json

import pytest

from pagefleet.workers.bench.plane import run_load
from pagefleet.workers.bench.step_log import Arrivals, StepLog, growth_ms


def write_trace(path, steps):
    """Write a trace of steps, each given as (end in seconds, request ids of its first tokens)."""
    events = [{"name": "publish", "ts": 1e6, "dur": 5.0, "args": {}}]
    for end, ids in steps:
        event = {"name": "step", "ts": end * 1e6 - 1000, "dur": 1000.0, "args": {"first_tokens": ids}}
        events.append(event)
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_each_token_is_compared_with_its_own_step(tmp_path):
    trace = write_trace(tmp_path / "trace.json", [(1.0, ["a#1"]), (1.5, ["b#2"]), (2.0, []), (2.5, [])])
    log = StepLog.read(trace)
    # Stream a: its third and fourth token arrive together. Stream b: one by one.
    streams = {"a": Arrivals([1.25, 1.75, 2.75], [1, 2, 4]), "b": Arrivals([1.625, 2.125], [1, 2])}
    assert sorted(log.lags(streams, 1.5, 3.0)) == [
        (1.625, 125.0), (1.75, 250.0), (2.125, 125.0), (2.75, 250.0), (2.75, 750.0),
    ]  # fmt: skip
    assert log.interval_ms(0.0, 3.0) == 500.0


def test_the_growth_compares_the_last_quarter_with_the_first():
    assert growth_ms([(at / 10, 5.0 + at) for at in range(8)]) == 6.0


@pytest.mark.slow
@pytest.mark.alone
def test_the_plane_keeps_up_with_the_engine(server_binary, own_environment):
    """128 streams of 50 tokens a second. `pagefleet bench --plane` measures more; these bars are loose."""
    figures = run_load(128, measured_s=3.0)
    assert figures["tok_s"] >= 0.9 * 128 * 50, figures
    assert figures["lag_min_ms"] >= 0, figures
    assert figures["lag_p50_ms"] <= 30, figures
    assert figures["us_a_token_by_thread"]["publisher"] <= 20, figures
