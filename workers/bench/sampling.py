"""The cost of sampling per step: different parameters for each sequence, compared to greedy sampling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import torch

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.engine.execution.model_runner import ModelRunner
from pagefleet.engine.loading.loader import load
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowIndices, SamplingBatch
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions

Progress = Callable[[str], None]

_NUM_PAIRS: Final = 30
"""The number of pairs of steps in a round."""
_PROMPT: Final = "Write a letter to a friend about number {}, and tell what you have seen on your journey."


class _Step(NamedTuple):
    """The durations of one step, in milliseconds."""

    step: float
    step_cpu: float
    sampler_cpu: float
    """The part of `step_cpu` that the sampler took, in all threads of the process."""


class _AlternatingSampler(ReferenceSampler):
    """The sampler with a stopwatch for CPU time. While `is_greedy` is set, all rows are sampled greedily."""

    def __init__(self) -> None:
        super().__init__()
        self.is_greedy = False
        self.cpu_s = 0.0

    def sample(
        self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None = None
    ) -> RowIndices:
        if self.is_greedy:
            batch = SamplingBatch.empty(len(batch))
        begun = time.process_time()
        token_ids = super().sample(logits, batch, masks)
        self.cpu_s = time.process_time() - begun
        return token_ids


def mixed_params(index: int) -> dict[str, Any]:
    """Return different parameters for each sequence: filters, and logits rules for every third one."""
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
    """Measure steps in which each sequence has different parameters, alternating with greedy steps.

    Both kinds of steps have the same sequences and lengths, and changes of the machine's speed affect both.
    """
    # Without a time limit, every step has the whole batch, even on a slow machine.
    config = replace(config, max_step_s=None)
    loaded = load(config)
    engine, runner = LLMEngine(loaded, config), loaded.executor
    assert isinstance(runner, ModelRunner)
    steps: dict[str, list[_Step]] = {"greedy": [], "mixed": []}
    meter = StealMeter()
    for index in range(num_rounds):
        new_steps = _run(engine, runner, num_requests)
        for kind, durations in new_steps.items():
            steps[kind] += durations
        medians = {
            kind: statistics.median(each.step for each in durations) for kind, durations in new_steps.items()
        }
        progress(f"round {index + 1}: " + ", ".join(f"{kind} {ms:.1f} ms" for kind, ms in medians.items()))
    return _figures(steps) | {
        "num_requests": num_requests,
        "stolen": meter.share(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _params(params: dict[str, Any]) -> SamplingParams:
    return SamplingParams(max_tokens=200, ignore_eos=True, **params)


def _run(engine: LLMEngine, runner: ModelRunner, num_requests: int) -> dict[str, list[_Step]]:
    for index in range(num_requests):
        prompt = engine.tokenizer.encode(_PROMPT.format(index))
        engine.add_request(EngineRequest(f"bench-{index}", prompt, _params(mixed_params(index))))
    while len(engine.step()) < num_requests:
        pass
    runner.sampler = sampler = _AlternatingSampler()
    steps: dict[str, list[_Step]] = {"greedy": [], "mixed": []}
    for index in range(2 * _NUM_PAIRS):
        # The order alternates between pairs.
        sampler.is_greedy = index % 4 in (0, 3)
        step = _timed(engine, sampler)
        # Leave out the first pair: caches are cold.
        if index >= 2:
            steps["greedy" if sampler.is_greedy else "mixed"].append(step)
    for index in range(num_requests):
        engine.abort(f"bench-{index}")
    return steps


def _timed(engine: LLMEngine, sampler: _AlternatingSampler) -> _Step:
    start, start_cpu = time.perf_counter(), time.process_time()
    engine.step()
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    return _Step(*(1000 * seconds for seconds in (wall, cpu, sampler.cpu_s)))


def _figures(steps: dict[str, list[_Step]]) -> dict[str, Any]:
    """Return the medians of each kind, and the medians and quartiles of the ratios of pairs."""
    medians = {
        kind: {
            f"{name}_ms": round(statistics.median(getattr(step, name) for step in some), 2)
            for name in _Step._fields
        }
        for kind, some in steps.items()
    }
    figures: dict[str, Any] = {**medians, "num_pairs": len(steps["mixed"])}
    for name in ("step", "step_cpu"):
        pairs = zip(steps["mixed"], steps["greedy"], strict=True)
        ratios = [getattr(mixed, name) / getattr(greedy, name) for mixed, greedy in pairs]
        low, middle, high = statistics.quantiles(ratios)
        figures[f"{name}_mixed_over_greedy"] = round(middle, 3)
        figures[f"{name}_mixed_over_greedy_quartiles"] = [round(low, 3), round(high, 3)]
    return figures
