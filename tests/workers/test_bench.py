"""The whole fleet is nearly as fast as its engine. `make bench` measures it; this bar is loose."""

from __future__ import annotations

from statistics import median

import pytest

from pagefleet.engine import EngineConfig, LLMEngine
from pagefleet.workers.bench.report import run_round
from pagefleet.workers.bench.workload import Workload
from pagefleet.workers.local.local_stack import LocalStack

pytestmark = [pytest.mark.alone, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
MOST_COST_S = 1 / (0.85 * 160) - 1 / 160
"""Seconds a token: a share of 0.85 of the 160 tok/s that the engine reached when this bar was set (0027)."""
MIN_ROUNDS, MAX_ROUNDS = 3, 9


def test_the_fleet_adds_little_time_to_each_token(server_binary, own_environment, tmp_path):
    """The median of at least three alternations; more of them where a shared machine's noise decides."""
    engine = LLMEngine.from_config(EngineConfig(model=MODEL, dtype="bfloat16", num_blocks=1024))
    workload = Workload(num_requests=40, prompt_len=(16, 64), output_len=(24, 48))
    costs = []
    with LocalStack(tmp_path, ["--model", MODEL, "--dtype", "bfloat16"]) as stack:
        # The first opens connections and touches memory on both sides.
        run_round(engine, stack.redis_url, MODEL, workload.requests(engine.info.vocab_size, 99), 0)
        for index in range(MAX_ROUNDS):
            requests = workload.requests(engine.info.vocab_size, index)
            one = run_round(engine, stack.redis_url, MODEL, requests, index)
            assert one.fleet.timing.num_tokens == one.in_process.timing.num_tokens
            assert one.fleet.max_batch >= 32
            costs.append(1 / one.fleet.timing.output_tok_s - 1 / one.in_process.timing.output_tok_s)
            if len(costs) >= MIN_ROUNDS and median(costs) <= MOST_COST_S:
                break
    engine.close()
    assert median(costs) <= MOST_COST_S, costs
