"""`pagefleet bench --host` measures steps in which every sequence gets a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagefleet.workers.bench.host import CASES, HostCase, host_table, run_host_bench

MODEL = "smollm2-135m-instruct"


def test_the_figures_are_those_of_whole_steps():
    lines = []
    cases = [HostCase(3, 40, 0.1), HostCase(20, 20, 0.2)]
    figures = run_host_bench(MODEL, peer=Path("missing"), progress=lines.append, num_steps=8, cases=cases)
    assert list(figures["cases"]) == ["3 x 40", "20 x 20"]
    for found in figures["cases"].values():
        assert 0 < found["engine_min_ms"] <= found["engine_ms"] < 100
        assert found["stages_ms"]["schedule"] < 2 * found["engine_ms"]
        assert found["output_ms"] > 0
        assert "vllm" not in found
    assert any("make peers" in line for line in lines)
    table = host_table(figures)
    assert "3 x 40" in table
    assert "vLLM" not in table


def test_a_peer_that_fails_is_left_out(tmp_path):
    peer = tmp_path / "python"
    peer.write_text("#!/bin/sh\necho no vllm here >&2\nexit 1\n")
    peer.chmod(0o755)
    lines = []
    figures = run_host_bench(
        MODEL, peer=peer, progress=lines.append, num_steps=2, cases=[HostCase(2, 20, 1.0)]
    )
    assert "vllm" not in figures["cases"]["2 x 20"]
    assert any("no vllm here" in line for line in lines)


def test_a_peer_s_figures_stand_beside_ours(tmp_path):
    peer = tmp_path / "python"
    peer.write_text('#!/bin/sh\necho a line before\necho \'{"total_ms": 1000.0, "schedule_ms": 400.0}\'\n')
    peer.chmod(0o755)
    figures = run_host_bench(
        MODEL, peer=peer, progress=lambda line: None, num_steps=2, cases=[HostCase(2, 20, 1.0)]
    )
    (found,) = figures["cases"].values()
    assert found["over_vllm"] == pytest.approx((found["engine_ms"] + found["output_ms"]) / 1000, abs=1e-3)
    assert "ours / vLLM's" in host_table(figures)


@pytest.mark.alone
@pytest.mark.slow
def test_a_step_takes_the_engine_s_thread_no_more_than_three_times_its_goal():
    figures = run_host_bench(MODEL, peer=Path("missing"), progress=lambda line: None, num_steps=40)
    for case in CASES:
        assert figures["cases"][case.name]["engine_min_ms"] < 3 * case.goal_ms
