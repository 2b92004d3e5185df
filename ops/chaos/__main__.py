"""``python -m ops.chaos``: rounds of faults; exit status 1 if anything was lost, doubled, changed or left
behind."""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import click

from ops.chaos.faults import FAULTS, schedule
from ops.chaos.fleet import ChaosFleet
from ops.chaos.report import Overload, by_fault, summary, write_json
from ops.chaos.rounds import RoundResult, Suite
from ops.chaos.workload import workload_of

_DEFAULT_ROUNDS = {"null": 100, "model": 11, "gateway": 40}
_NUM_GATEWAYS = 2
_FIGURES = ("silence_s", "struck_silence_s", "claim_s", "prefill_s", "drain_s", "orphan_s", "reconnect_s")


@click.command()
@click.option("--engine", type=click.Choice(["null", "model"]), default="null", show_default=True)
@click.option(
    "--through",
    type=click.Choice(["gateway"]),
    help="Clients read over HTTP, from two gateways that are killed too; then twice the load that fits.",
)
@click.option(
    "--rounds", "num_rounds", type=int, help="By default 100, with the model 11, through gateways 40."
)
@click.option("--overload-seconds", type=float, default=8.0, show_default=True, help="Of each load.")
@click.option("--seed", type=int, help="Repeats a run's faults and their moments; by default a new one.")
@click.option("--workers", "num_workers", type=int, default=2, show_default=True)
@click.option("--streams", "num_streams", type=int, help="At a time; by default 64, with the model 16.")
@click.option(
    "--fault", "only", multiple=True, type=click.Choice(sorted(FAULTS)), help="Only this; repeatable."
)
@click.option("--stop-early", is_flag=True, help="Stop after the first round that was not clean.")
@click.option("--home", type=click.Path(path_type=Path), help="For data and logs; by default temporary.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="By default build/chaos-ENGINE.json, through gateways build/chaos-gateway.json.",
)
def main(
    engine: str,
    through: str | None,
    num_rounds: int | None,
    overload_seconds: float,
    seed: int | None,
    num_workers: int,
    num_streams: int | None,
    only: tuple[str, ...],
    stop_early: bool,
    home: Path | None,
    json_path: Path | None,
) -> None:
    """Faults against a real fleet whose streams must not notice."""
    if "gateway" in only and not through:
        raise click.UsageError("--fault gateway needs --through gateway.")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    home = home or Path(tempfile.mkdtemp(prefix="pagefleet-chaos-"))
    workload = workload_of(engine, num_streams)
    begun_at = time.monotonic()
    click.echo(f"seed {seed}; logs in {home}")
    rng = random.Random(seed)
    deck = through or engine
    names = schedule(deck, num_rounds or _DEFAULT_ROUNDS[deck], rng, only)
    with ChaosFleet(engine, home, num_workers, _NUM_GATEWAYS if through else 0) as fleet:
        suite = Suite(fleet, workload, click.echo)
        try:
            suite.run_calm(len(names))
            results = _run(suite, names, seed, stop_early)
        finally:
            suite.close()
    overload = _overload(home, overload_seconds) if through else None
    seconds = time.monotonic() - begun_at
    about = {"engine": engine, "seed": seed, "num_workers": num_workers, "num_streams": workload.num_streams}
    write_json(json_path or Path("build") / f"chaos-{deck}.json", about, results, seconds, overload)
    _print_figures(results, seconds)
    for complaint in overload.complaints if overload else ():
        click.echo(complaint)
    click.echo(summary(engine, results, overload))
    is_clean = all(result.is_clean for result in results) and not (overload and overload.complaints)
    sys.exit(0 if is_clean else 1)


def _overload(home: Path, seconds: float) -> Overload:
    # It imports httpx, which only these runs need.
    from ops.chaos.overload import measure_overload

    return measure_overload(home, seconds)


def _run(suite: Suite, names: list[str], seed: int, stop_early: bool) -> list[RoundResult]:
    results: list[RoundResult] = []
    for index, fault in enumerate(names):
        result = suite.run_round(index, fault, random.Random(f"{seed}/{index}"))
        results.append(result)
        _print_round(result, len(names))
        if stop_early and not result.is_clean:
            break
    return results


def _print_round(result: RoundResult, num_rounds: int) -> None:
    click.echo(
        f"{result.index + 1:4}/{num_rounds} {result.fault:<13}{result.style:<6}{result.seconds:6.1f} s  "
        f"{result.num_tokens} tokens  longest silence {max(result.silences_s):.2f} s  "
        + (
            "clean"
            if result.is_clean
            else f"lost {result.lost} doubled {result.doubled} changed {result.changed}"
        )
    )
    if not result.is_clean:
        for line in [*result.story, *result.complaints[:20]]:
            click.echo(f"          {line}")


def _print_figures(results: list[RoundResult], seconds: float) -> None:
    click.echo(f"{len(results)} rounds in {seconds:.0f} s; seconds below are p50 / p99 / max")
    for fault, figures in by_fault(results).items():
        counts = f"solo {figures['solo']}  blamed {figures['blamed']}"
        parts = [f"{fault:<13}{figures['rounds']:4} rounds  {counts}"]
        for name in _FIGURES:
            spread = figures[name]
            if spread["num"]:
                parts.append(f"{name} {spread['p50']:.2f} / {spread['p99']:.2f} / {spread['max']:.2f}")
        click.echo("  ".join(parts))


if __name__ == "__main__":
    main()
