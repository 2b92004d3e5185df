"""What guessing ahead gains where an answer repeats its prompt, and costs where nothing can be guessed.

One sequence at a time, with and without, in turn: the same request of the same engine.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any, Final, NamedTuple

from pagefleet.engine import EngineConfig, EngineRequest, LLMEngine, SamplingParams
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions

Progress = Callable[[str], None]

_TASKS: Final = (
    "Summarize the following report. Keep its names, figures and dates.",
    "Write the following report once more, and correct its mistakes.",
    "List the most important sentences of the following report, word for word.",
)
_REPORTS: Final = (
    "The harbour of Ostmünde was closed on Monday, 3 March, after the freighter Annelise had lost "
    "eleven containers in the storm. The harbour master, Birte Hansen, said that four of the containers "
    "had been found near the northern breakwater, and that the other seven were still missing. Two of "
    "the missing containers hold batteries, and the coast guard has asked fishing boats to stay at "
    "least two miles away. The Annelise, a ship of 140 metres, is on her way from Gdansk to Rotterdam "
    "with a crew of sixteen; nobody was hurt. The harbour is to be opened again on Wednesday, 5 March, "
    "if the wind goes down as expected.",
    "In the second quarter the Northfield Dairy Cooperative sold 4.2 million litres of milk, 8 percent "
    "more than in the year before. Sales of cheese rose by 15 percent to 310 tonnes, and sales of "
    "butter fell by 3 percent to 95 tonnes. The chairman, Samuel Okafor, said that the new creamery in "
    "Addington, which was opened in April, had paid for a third of its cost already. The cooperative "
    "wants to hire twenty more drivers before the end of the year, and to replace nine of its forty "
    "trucks with electric ones. Its members will vote on the plan at the assembly in Addington on 14 "
    "September.",
    "The library of the university reports a difficult year. A burst pipe in the cellar damaged 2,300 "
    "books on 12 January, most of them from the collection of maps and travel reports. The conservator, "
    "Elena Petrova, and her three assistants have dried and cleaned 1,750 of them so far, and 120 are "
    "lost for good. The reading room was closed for eleven weeks and was opened again on 2 April. "
    "Meanwhile 40,000 pages of the collection have been scanned and can be read from everywhere. The "
    "library asks for donations of 85,000 euros, so that the remaining books can be restored before the "
    "end of next year.",
)
_MAX_TOKENS: Final = 128
_NUM_RANDOM: Final = 300


class _Case(NamedTuple):
    prompt: list[int]
    params: dict[str, Any]


class _Run(NamedTuple):
    """Of one request after its prefill."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    """Of all threads of the process: other programs have less to say in it."""


def run_speculation_bench(config: EngineConfig, *, num_rounds: int, progress: Progress) -> dict[str, Any]:
    """Alternates requests with and without speculation, each first in every other round."""
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
    made_up = random.Random(0)
    noise = [made_up.choices(range(engine.info.vocab_size), k=_NUM_RANDOM) for _ in chats]
    # Words that come again, with others around them: guesses that are wrong.
    shuffled = [made_up.sample(chat, len(chat)) for chat in chats]
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
    begun, begun_cpu, num_tokens = time.perf_counter(), time.process_time(), 0
    while engine.has_unfinished_requests:
        num_tokens += sum(len(output.token_ids) for output in engine.step())
    return _Run(num_tokens / (time.perf_counter() - begun), num_tokens / (time.process_time() - begun_cpu))


def _figures(pairs: Sequence[tuple[_Run, _Run]]) -> dict[str, Any]:
    """Medians of each side, and of the pairs' ratios."""
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
