"""Figures of a run: by fault, as JSON, and the one line at its end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.chaos.rounds import RoundResult
from pagefleet.workers.bench.machine import describe_machine, describe_versions


@dataclass(frozen=True, slots=True)
class Overload:
    """The result of overload.py: p99 in seconds, of accepted requests at single and double load."""

    num_refused: int
    refused_s: float
    ttft_s: tuple[float, float]
    itl_s: tuple[float, float]
    complaints: list[str]

    def line(self) -> str:
        ttft, itl = ("/".join(f"{value * 1000:.0f}" for value in pair) for pair in (self.ttft_s, self.itl_s))
        return (
            f"overload_refused={self.num_refused} refused_p99_ms={self.refused_s * 1000:.0f} "
            f"ttft_p99_ms={ttft} itl_p99_ms={itl}"
        )


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that is not below ``share`` of all; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    figures = {
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "max": max(values, default=None),
    }
    rounded = {name: None if value is None else round(value, 3) for name, value in figures.items()}
    return {"num": len(values), **rounded}


def by_fault(results: Sequence[RoundResult]) -> dict[str, Any]:
    """Return the figures of each fault.

    - ``solo``: jobs that started alone after a death with several suspects; ``blamed``: sole suspects.
    - ``silence_s``: longest silence of each stream; ``struck_silence_s``: of the streams that a second worker
      continued, or that were silent for longer than a lease (their message was lost before a claim).
    - ``claim_s``: from a worker's death or freeze to the next claim of each of its jobs.
    - ``prefill_s``: time for one worker to prefill everything that a dead one left, at the calm run's pace.
    - ``drain_s``: from SIGTERM until the last job is back in its queue.
    - ``orphan_s``: from a client's death to the cancel of each of its jobs.
    - ``reconnect_s``: from the end of a connection to a gateway until the client receives something new.
    """
    faults = sorted({result.fault for result in results})
    return {fault: _figures([result for result in results if result.fault == fault]) for fault in faults}


def _figures(results: Sequence[RoundResult]) -> dict[str, Any]:
    return {
        "rounds": len(results),
        "unclean": sum(not result.is_clean for result in results),
        "solo": sum(result.num_solo for result in results),
        "blamed": sum(result.num_blamed for result in results),
        "seconds": spread([result.seconds for result in results]),
        "silence_s": spread([value for result in results for value in result.silences_s]),
        "struck_silence_s": spread([value for result in results for value in result.struck_silences_s]),
        "claim_s": spread([value for result in results for value in result.claims_s]),
        "prefill_s": spread([value for result in results for value in result.prefills_s]),
        "drain_s": spread([value for result in results for value in result.drains_s]),
        "orphan_s": spread([value for result in results for value in result.orphans_s]),
        "reconnect_s": spread([value for result in results for value in result.reconnects_s]),
    }


def summary(engine: str, results: Sequence[RoundResult], overload: Overload | None = None) -> str:
    """Return the last line of the output.

    Silence and claim come from the struck streams after kill -9, or from all rounds if no round had a
    kill -9: faults that last 5 s exceed the bars by themselves.
    """
    kills = [result for result in results if result.fault == "kill"] or results
    silence = percentile([value for result in kills for value in result.struck_silences_s], 0.99)
    claim = percentile([value for result in kills for value in result.claims_s], 0.99)
    tokens, lost, doubled, changed = (
        sum(getattr(result, name) for result in results)
        for name in ("num_tokens", "lost", "doubled", "changed")
    )
    return (
        f"chaos: engine={engine} rounds={len(results)} tokens={tokens} lost={lost} doubled={doubled} "
        f"changed={changed} silence_p99_s={_seconds(silence)} claim_p99_s={_seconds(claim)}"
        + ("" if overload is None else f" through=gateway {_reconnects(results)} {overload.line()}")
    )


def _reconnects(results: Sequence[RoundResult]) -> str:
    found = [value for result in results for value in result.reconnects_s]
    return f"reconnects={len(found)} reconnect_p99_s={_seconds(percentile(found, 0.99))}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_json(
    path: Path,
    about: dict[str, Any],
    results: Sequence[RoundResult],
    seconds: float,
    overload: Overload | None = None,
) -> None:
    rounds = []
    for result in results:
        row = asdict(result)
        for name in ("silences_s", "struck_silences_s", "claims_s"):
            row[name.removesuffix("s_s") + "_s"] = spread(row.pop(name))
        for name in ("prefills_s", "drains_s", "orphans_s", "reconnects_s"):
            row[name] = [round(value, 3) for value in row[name]]
        rounds.append(row | {"seconds": round(result.seconds, 2)})
    head = {
        "date": time.strftime("%Y-%m-%d"),
        **about,
        "seconds": round(seconds, 1),
        "summary": summary(about["engine"], results, overload),
        **({} if overload is None else {"overload": asdict(overload)}),
        "by_fault": by_fault(results),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    # One line a round: a hundred of them stay readable.
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rounds)
    text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rounds": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
