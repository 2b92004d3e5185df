"""The whole fleet gives nearly what its engine gives. The exact bar is `make bench`'s; this one is loose."""

from __future__ import annotations

from pagefleet.engine import EngineConfig, LLMEngine
from pagefleet.workers.bench.runs import run_fleet, run_in_process
from pagefleet.workers.bench.workload import Workload
from pagefleet.workers.local_stack import LocalStack

MODEL = "smollm2-135m-instruct"
LEAST_SHARE = 0.85
MAX_ROUNDS = 6


def test_the_fleet_keeps_most_of_the_engines_throughput(server_binary, own_environment, tmp_path):
    """In turn, on a shared machine: one round that reaches the bar shows that the fleet can."""
    engine = LLMEngine.from_config(EngineConfig(model=MODEL, dtype="bfloat16", num_blocks=1024))
    workload = Workload(num_requests=40, prompt_len=(16, 64), output_len=(24, 48))
    shares = []
    with LocalStack(tmp_path, ["--model", MODEL, "--dtype", "bfloat16"]) as stack:
        for index in range(MAX_ROUNDS):
            requests = workload.requests(engine.info.vocab_size, index)
            alone, fleet = run_in_process(engine, requests), run_fleet(stack.redis_url, MODEL, requests)
            assert fleet.timing.num_tokens == alone.timing.num_tokens
            assert fleet.max_batch >= 32
            shares.append(fleet.timing.output_tok_s / alone.timing.output_tok_s)
            if shares[-1] >= LEAST_SHARE:
                break
    engine.close()
    assert max(shares) >= LEAST_SHARE, shares
