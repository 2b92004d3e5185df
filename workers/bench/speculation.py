"""The gain of speculation if an answer repeats its prompt, and its cost if no token can be predicted.

Each request runs on one engine with and without speculation, in alternation, one sequence at a time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib.resources import files
from typing import Any, Final, NamedTuple

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions

Progress = Callable[[str], None]

_TASKS: Final = (
    "Summarize the following report. Keep its names, figures and dates.",
    "Write the following report once more, and correct its mistakes.",
    "List the most important sentences of the following report, word for word.",
)
_REPORTS: Final = (files(__package__) / "reports.txt").read_text(encoding="utf-8").splitlines()
"""Made-up news, one report per line."""
_MAX_TOKENS: Final = 128
_NUM_RANDOM: Final = 300


class _Case(NamedTuple):
    prompt: list[int]
    params: dict[str, Any]


class _Run(NamedTuple):
    """The speed of one request after its prefill."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    """Relative to the CPU time of all threads, on which other programs have less influence."""


def run_speculation_bench(config: EngineConfig, *, num_rounds: int, progress: Progress) -> dict[str, Any]:
    """Run each request with and without speculation; the order alternates between requests."""
    engine = LLMEngine.from_config(replace(config, max_step_s=None))
    meter = StealMeter()
    figures = {
        name: _measure(engine, name, cases, num_rounds, progress)
        for name, cases in _workloads(engine).items()
    }
    return figures | {
        "num_speculative_tokens": config.num_speculative_tokens,
        "dtype": engine.info.fingerprint.dtype,
        "num_rounds": num_rounds,
        "date": date.today().isoformat(),
        "stolen": meter.share(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _workloads(engine: LLMEngine) -> dict[str, list[_Case]]:
    chats = [
        engine.tokenizer.apply_chat_template([{"role": "user", "content": f"{task}\n\n{report}"}])
        for task, report in zip(_TASKS, _REPORTS, strict=True)
    ]
    rng = random.Random(0)
    noise = [rng.choices(range(engine.info.vocab_size), k=_NUM_RANDOM) for _ in chats]
    # The same words in random order: predictions exist, but they are wrong.
    shuffled = [rng.sample(chat, len(chat)) for chat in chats]
    drawn = {"temperature": 1.0, "ignore_eos": True}
    return {
        "summary_greedy": [_Case(chat, {"temperature": 0.0}) for chat in chats],
        "summary_drawn": [_Case(chat, {"temperature": 0.7}) for chat in chats],
        "random": [_Case(prompt, drawn) for prompt in noise],
        "shuffled": [_Case(prompt, drawn) for prompt in shuffled],
    }


def _measure(
    engine: LLMEngine, name: str, cases: Sequence[_Case], num_rounds: int, progress: Progress
) -> dict[str, Any]:
    pairs: list[tuple[_Run, _Run]] = []
    _run(engine, cases[0], speculate=True, seed=0)  # warms up
    before = engine.stats()
    for index in range(num_rounds):
        for number, case in enumerate(cases):
            seed = index * len(cases) + number
            runs = {
                speculate: _run(engine, case, speculate=speculate, seed=seed)
                for speculate in (bool(seed % 2), not seed % 2)
            }
            pairs.append((runs[True], runs[False]))
            ratio = runs[True].tokens_per_s / runs[False].tokens_per_s
            progress(f"{name} {index}.{number}: {runs[False].tokens_per_s:.1f} tok/s, times {ratio:.3f}")
    after = engine.stats()
    num_drafted = after.num_draft_tokens - before.num_draft_tokens
    return _figures(pairs) | {
        "num_draft_tokens": num_drafted,
        "acceptance": round(
            (after.num_accepted_tokens - before.num_accepted_tokens) / max(1, num_drafted), 3
        ),
    }


def _run(engine: LLMEngine, case: _Case, *, speculate: bool, seed: int) -> _Run:
    params = SamplingParams(max_tokens=_MAX_TOKENS, seed=seed, speculate=speculate, **case.params)
    engine.add_request(EngineRequest("bench", case.prompt, params))
    while not engine.step():
        pass
    start, start_cpu, num_tokens = time.perf_counter(), time.process_time(), 0
    while engine.has_unfinished_requests:
        num_tokens += sum(len(output.token_ids) for output in engine.step())
    return _Run(num_tokens / (time.perf_counter() - start), num_tokens / (time.process_time() - start_cpu))


def _figures(pairs: Sequence[tuple[_Run, _Run]]) -> dict[str, Any]:
    """Return the medians with and without, and the median and quartiles of the ratios."""
    figures: dict[str, Any] = {}
    for field in _Run._fields:
        rates = [(getattr(with_, field), getattr(without, field)) for with_, without in pairs]
        ratios = sorted(on / off for on, off in rates)
        figures[field] = {
            "with": round(statistics.median(on for on, _ in rates), 2),
            "without": round(statistics.median(off for _, off in rates), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(each, 3) for each in statistics.quantiles(ratios)[::2]],
        }
    return figures
