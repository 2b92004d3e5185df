"""Compare the engine alone with a fleet, in alternation: changes of the machine's speed affect both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pagefleet.api import FleetClient
from pagefleet.engine import LLMEngine
from pagefleet.workers.bench.machine import describe_machine, describe_versions
from pagefleet.workers.bench.runs import Run, run_fleet, run_in_process, run_one
from pagefleet.workers.bench.timing import median
from pagefleet.workers.bench.workload import BenchRequest, Workload

Progress = Callable[[str], None]

_IDLE_PROMPT_LEN: Final = 16
_QUIET_STEAL: Final = 0.02
_IDLE_ROUND: Final = 1000


@dataclass(frozen=True, slots=True)
class Round:
    in_process: Run
    fleet: Run

    @property
    def ratio(self) -> float:
        return self.fleet.timing.output_tok_s / self.in_process.timing.output_tok_s

    @property
    def stolen(self) -> float:
        return max(self.in_process.stolen, self.fleet.stolen)

    @property
    def is_quiet(self) -> bool:
        """Whether the hypervisor took almost no time from both runs."""
        return self.stolen < _QUIET_STEAL


def run_bench(
    engine: LLMEngine,
    redis_url: str,
    model: str,
    workload: Workload,
    *,
    num_rounds: int,
    num_idle: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure throughput and latency of the engine and the fleet, and return the figures.

    After a warm-up, run ``num_rounds`` rounds: the same load on both, the order alternating. Then run
    ``num_idle`` single requests with 16-token prompts on each while nothing else runs.
    """
    vocab_size = engine.info.vocab_size
    machine = describe_machine()
    warm_up = Workload(num_requests=8, output_len=(8, 8)).requests(vocab_size, -1)
    run_in_process(engine, warm_up)
    run_fleet(redis_url, model, warm_up)
    rounds = []
    for index in range(num_rounds):
        round_ = run_round(engine, redis_url, model, workload.requests(vocab_size, index), index)
        rounds.append(round_)
        progress(
            f"round {index + 1}/{num_rounds}: in process {round_.in_process.timing.output_tok_s:.1f} tok/s, "
            f"fleet {round_.fleet.timing.output_tok_s:.1f} tok/s, ratio {round_.ratio:.3f}, "
            f"stolen {round_.stolen:.1%}"
        )
    idle = _idle_ttft(engine, redis_url, model, num_idle)
    return {
        **_summary(rounds),
        "idle_ttft_ms": idle,
        "workload": workload.describe(),
        "machine": machine,
        "versions": describe_versions(),
    }


def run_round(
    engine: LLMEngine, redis_url: str, model: str, requests: Sequence[BenchRequest], index: int
) -> Round:
    """Run the same load on both; the engine comes first in even rounds."""
    if index % 2:
        fleet = run_fleet(redis_url, model, requests)
        return Round(run_in_process(engine, requests), fleet)
    return Round(run_in_process(engine, requests), run_fleet(redis_url, model, requests))


def _spread(rounds: Sequence[Round]) -> dict[str, float | int]:
    ratios = [one.ratio for one in rounds]
    if not ratios:
        return {"num_rounds": 0}
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios), "num_rounds": len(ratios)}


def _summary(rounds: Sequence[Round]) -> dict[str, Any]:
    fleet = [one.fleet for one in rounds]
    return {
        "in_process": {
            "output_tok_s": median([one.in_process.timing.output_tok_s for one in rounds]),
            "itl_ms": _percentiles([one.in_process for one in rounds], "itl_ms"),
        },
        "fleet": {"output_tok_s": median([run.timing.output_tok_s for run in fleet])},
        "fleet_over_in_process": _spread(rounds),
        "fleet_over_in_process_quiet": _spread([one for one in rounds if one.is_quiet]),
        "stolen": [round(one.stolen, 4) for one in rounds],
        "max_batch": max(run.max_batch for run in fleet),
        "mean_batch": median([run.mean_batch for run in fleet]),
        "ttft_ms": _percentiles(fleet, "ttft_ms"),
        "itl_ms": _percentiles(fleet, "itl_ms"),
    }


def _percentiles(runs: Sequence[Run], figure: str) -> dict[str, float]:
    return {
        name: median([getattr(run.timing, figure)(q) for run in runs])
        for name, q in (("p50", 0.5), ("p99", 0.99))
    }


def _idle_ttft(engine: LLMEngine, redis_url: str, model: str, num_idle: int) -> dict[str, float]:
    """Measure the time from submission to first token of single 16-token prompts, alternating both sides."""
    workload = Workload(num_requests=1, prompt_len=(_IDLE_PROMPT_LEN,) * 2, output_len=(4, 4))
    in_process, fleet = [], []
    with FleetClient(redis_url=redis_url) as client:
        for index in range(num_idle + 1):
            (request,) = workload.requests(engine.info.vocab_size, _IDLE_ROUND + index)
            in_process.append(run_in_process(engine, [request]).timing.ttft_ms(0.5))
            fleet.append(run_one(client, model, request).ttft_ms)
    # Leave out the first of each: it opens connections.
    in_process, fleet = in_process[1:], fleet[1:]
    return {
        "in_process_p50": median(in_process),
        "fleet_p50": median(fleet),
        "added_p50": median(fleet) - median(in_process),
    }
