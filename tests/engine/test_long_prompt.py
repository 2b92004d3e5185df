"""A long prompt alone: what a worker's steps cost beside one step for all of it, with the real model."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.execution import step_pipeline, warm_up
from pagefleet.engine.loading import loader

pytestmark = pytest.mark.slow

NUM_TOKENS, LIMIT_S, NUM_THREADS = 7530, 0.75, 2


class CpuClock:
    """Of the process alone: what else the machine does must not count."""

    @staticmethod
    def monotonic() -> float:
        times = os.times()
        return (times.user + times.system) / NUM_THREADS

    perf_counter = monotonic


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_steps_cost_less_than_a_third_more_than_one_step_for_all(dtype: str, monkeypatch):
    monkeypatch.setattr(step_pipeline, "time", CpuClock)
    monkeypatch.setattr(warm_up, "time", CpuClock)
    fields: dict[str, Any] = {"model": "smollm2-135m-instruct", "dtype": dtype, "num_blocks": 500}
    fields |= {"num_threads": NUM_THREADS, "enable_prefix_caching": False}
    in_steps = EngineConfig(**fields, max_step_s=LIMIT_S)
    loaded = loader.load(in_steps)
    uncut = EngineConfig(**fields, max_num_batched_tokens=10**6)
    ratios, steps = [], []
    for _ in range(2):
        alone_s, _ = first_token(LLMEngine(loaded, uncut))
        took_s, lasted = first_token(LLMEngine(loaded, in_steps))
        ratios.append(took_s / alone_s)
        steps += lasted
    assert min(ratios) < 1.3
    assert sum(lasted <= LIMIT_S for lasted in steps) > 0.8 * len(steps)
    assert max(steps) < 2 * LIMIT_S


def first_token(engine: LLMEngine) -> tuple[float, list[float]]:
    """Seconds to it, and those of each step."""
    prompt = [100 + index * 7919 % 40_000 for index in range(NUM_TOKENS)]
    engine.add_request(EngineRequest("a", prompt, SamplingParams(max_tokens=1, temperature=0)))
    lasted = []
    while engine.has_unfinished_requests:
        begun_at = CpuClock.monotonic()
        engine.step()
        lasted.append(CpuClock.monotonic() - begun_at)
    return sum(lasted), lasted
