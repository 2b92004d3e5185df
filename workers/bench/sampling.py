"""What sampling costs a step: a batch in which every sequence has other parameters, beside greedy ones."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.loader import load
from pagefleet.engine.model_runner import ModelRunner
from pagefleet.engine.sampler import Sampler, SamplingRow
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions

Progress = Callable[[str], None]

_NUM_STEPS: Final = 16
_PROMPT: Final = "Write a letter to a friend about number {}, and tell what you have seen on your journey."


class SamplingCost(NamedTuple):
    """Lower quartiles of one run's steps, in milliseconds: a machine's other work only ever adds."""

    step: float
    step_cpu: float
    sampler_cpu: float
    """The sampler's share of `step_cpu`: all threads of the process while it ran."""


class _TimedSampler(Sampler):
    """The sampler, with a stopwatch for the processor's time."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s: list[float] = []

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], allowed: NDArray[np.int32] | None = None
    ) -> list[int]:
        begun = time.process_time()
        token_ids = super().sample(logits, rows, allowed)
        self.cpu_s.append(time.process_time() - begun)
        return token_ids


def mixed_params(index: int) -> dict[str, Any]:
    """Every sequence draws, has filters of its own, and every third one rules for its logits."""
    filters: Sequence[dict[str, Any]] = (
        {},
        {"top_k": 20 + index},
        {"top_p": 0.7 + index / 256},
        {"min_p": 0.02 + index / 1000},
        {"top_k": 50, "top_p": 0.95, "min_p": 0.01},
        {"typical_p": 0.5 + index / 256},
        {"top_p": 0.98, "typical_p": 0.95},
        {"top_k": 1 + index},
    )
    rules: Sequence[dict[str, Any]] = (
        {"repetition_penalty": 1.1 + index / 640},
        {"presence_penalty": 0.5, "frequency_penalty": index / 100},
        {"logit_bias": {1000 + index: 2.0, 2000 + index: -100.0}},
        {"allowed_token_ids": list(range(index, 40_000, 3))},
        {"bad_words": ["friend", "journey", f"number {index}"]},
        {"min_tokens": 100},
    )
    params = {"temperature": 0.5 + index / 100, "seed": index, **filters[index % len(filters)]}
    return params | (rules[index // 3 % len(rules)] if index % 3 == 0 else {})


def run_sampling_bench(
    config: EngineConfig, *, num_requests: int, num_rounds: int, progress: Progress
) -> dict[str, Any]:
    """Alternates greedy and mixed runs of the same prompts, each kind first in every other round."""
    # Every step has the whole batch, however slow the machine is.
    config = replace(config, max_step_s=None)
    loaded = load(config)
    engine, runner = LLMEngine(loaded, config), loaded.executor
    assert isinstance(runner, ModelRunner)
    kinds: dict[str, list[SamplingParams]] = {
        "greedy": [_params({"temperature": 0.0})] * num_requests,
        "mixed": [_params(mixed_params(index)) for index in range(num_requests)],
    }
    costs: dict[str, list[SamplingCost]] = {kind: [] for kind in kinds}
    meter = StealMeter()
    for index in range(num_rounds + 1):
        for kind in sorted(kinds, reverse=bool(index % 2)):
            cost = _run(engine, runner, kinds[kind])
            # The first round fills the prefix cache.
            if index:
                costs[kind].append(cost)
            progress(
                f"{kind} {index}: {cost.step:.0f} ms a step, {cost.sampler_cpu:.1f} ms CPU in the sampler"
            )
    return _figures(costs) | {
        "num_requests": num_requests,
        "stolen": meter.share(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _params(params: dict[str, Any]) -> SamplingParams:
    return SamplingParams(max_tokens=200, ignore_eos=True, **params)


def _run(engine: LLMEngine, runner: ModelRunner, params: Sequence[SamplingParams]) -> SamplingCost:
    for index, one in enumerate(params):
        prompt = engine.tokenizer.encode(_PROMPT.format(index))
        engine.add_request(EngineRequest(f"bench-{index}", prompt, one))
    while len(engine.step()) < len(params):
        pass
    runner.sampler = sampler = _TimedSampler()
    wall, cpu = [], []
    for _ in range(_NUM_STEPS):
        begun, begun_cpu = time.perf_counter(), time.process_time()
        engine.step()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - begun_cpu)
    for index in range(len(params)):
        engine.abort(f"bench-{index}")
    return SamplingCost(*(1000 * statistics.quantiles(times)[0] for times in (wall, cpu, sampler.cpu_s)))


def _figures(costs: dict[str, list[SamplingCost]]) -> dict[str, Any]:
    """Medians of each kind, and of the pairs' ratios."""
    medians = {
        kind: {
            f"{name}_ms": round(statistics.median(getattr(cost, name) for cost in runs), 2)
            for name in SamplingCost._fields
        }
        for kind, runs in costs.items()
    }
    pairs = list(zip(costs["mixed"], costs["greedy"], strict=True))
    ratios = {
        f"{name}_mixed_over_greedy": round(
            statistics.median(getattr(mixed, name) / getattr(greedy, name) for mixed, greedy in pairs), 3
        )
        for name in ("step", "step_cpu")
    }
    return medians | ratios
