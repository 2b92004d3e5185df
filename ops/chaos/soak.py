"""``python -m ops.chaos.soak``: a steady load; exit status 1 if anything grows."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import click

from ops.chaos.books import keys_left
from ops.chaos.fleet import ChaosFleet, read_process, sleep_until
from ops.chaos.soak_load import RESULT_TTL_S, Load
from pagefleet.workers.bench.machine import describe_machine, describe_versions
from pagefleet.workers.threads.polling import wait_until

# Flat is: the mean of the last fifth of the samples after warm-up against that of the first fifth,
# - resident memory of each worker and of Valkey: at most 4 MiB and 5 % more;
# - keys without an expiry (those of running jobs, mostly): at most 10 and 20 % more;
# - connections and threads of each worker: at most 1 more;
# and at the end, idle: no key left without an expiry but the standing ones, every block free, no job wrong.
_MORE_MB: Final = 4.0
_MORE_MEMORY: Final = 0.05
_MORE_KEYS: Final = 10
_MORE_KEYS_SHARE: Final = 0.2
_MORE_HANDLES: Final = 1.0
_WARM_UP_S: Final = 60.0
_SETTLE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    resident_mb: dict[str, float]
    num_connections: int
    num_threads: int
    num_lasting_keys: int
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure's mean in the first and in the last fifth."""

    name: str
    first: float
    last: float
    limit: float

    @property
    def growth(self) -> float:
        return self.last - self.first

    @property
    def is_flat(self) -> bool:
        return self.growth <= self.limit


def take_sample(fleet: ChaosFleet, begun_at: float) -> Sample:
    held = [fleet.resources(index) for index in range(len(fleet.workers))]
    resident = {f"worker {index}": each.resident_mb for index, each in enumerate(held)}
    statuses = [status for status in fleet.statuses() if status is not None]
    return Sample(
        at_s=round(time.monotonic() - begun_at, 1),
        resident_mb=resident | {"valkey": read_process(fleet.server.pid)[1]},
        num_connections=sum(each.num_connections for each in held),
        num_threads=sum(each.num_threads for each in held),
        num_lasting_keys=len(keys_left(fleet)),
        num_free_blocks=sum(status.num_free_blocks for status in statuses),
    )


def trends(samples: Sequence[Sample], warm_up_s: float, num_workers: int) -> list[Trend]:
    warm = [sample for sample in samples if sample.at_s >= warm_up_s]
    fifth = max(1, len(warm) // 5)

    def trend(name: str, read: Callable[[Sample], float], share: float, more: float) -> Trend:
        first, last = fmean(map(read, warm[:fifth])), fmean(map(read, warm[-fifth:]))
        return Trend(name, round(first, 2), round(last, 2), round(first * share + more, 2))

    def resident_of(process: str) -> Callable[[Sample], float]:
        return lambda sample: sample.resident_mb[process]

    handles = _MORE_HANDLES * num_workers
    return [
        *(trend(f"rss {name}", resident_of(name), _MORE_MEMORY, _MORE_MB) for name in warm[0].resident_mb),
        trend("keys", lambda sample: sample.num_lasting_keys, _MORE_KEYS_SHARE, _MORE_KEYS),
        trend("connections", lambda sample: sample.num_connections, 0.0, handles),
        trend("threads", lambda sample: sample.num_threads, 0.0, handles),
    ]


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True)
@click.option("--clients", "num_clients", type=int, default=24, show_default=True)
@click.option("--workers", "num_workers", type=int, default=2, show_default=True)
@click.option(
    "--every", "every_s", type=float, default=3.0, show_default=True, help="Seconds between samples."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=Path("build/soak.json"))
def main(
    minutes: float, num_clients: int, num_workers: int, every_s: float, seed: int, json_path: Path
) -> None:
    """Run the null engine under a steady mixed load and look for anything that grows."""
    home = Path(tempfile.mkdtemp(prefix="pagefleet-soak-"))
    click.echo(f"logs in {home}")
    with ChaosFleet("null", home, num_workers) as fleet:
        load = Load(fleet.server.url, num_clients, seed)
        samples = _sample_under_load(fleet, load, 60 * minutes, every_s)
        blocks_lost, left = _rest(fleet)
    found = trends(samples, min(_WARM_UP_S, 12 * minutes), num_workers)
    for each in found:
        click.echo(
            f"{each.name:<14}{each.first:9.2f} -> {each.last:9.2f}  {'' if each.is_flat else 'NOT FLAT'}"
        )
    faults = load.faults + left
    for fault in faults[:20]:
        click.echo(fault)
    line = _summary(minutes, load, found, blocks_lost)
    _write(json_path, line, load, found, samples, faults)
    click.echo(line)
    sys.exit(0 if all(each.is_flat for each in found) and not blocks_lost and not faults else 1)


def _sample_under_load(fleet: ChaosFleet, load: Load, seconds: float, every_s: float) -> list[Sample]:
    begun_at = time.monotonic()
    samples: list[Sample] = []
    load.start()
    try:
        while time.monotonic() - begun_at < seconds:
            sleep_until(begun_at + (len(samples) + 1) * every_s)
            samples.append(take_sample(fleet, begun_at))
    finally:
        load.stop()
    return samples


def _rest(fleet: ChaosFleet) -> tuple[int, list[str]]:
    """What is missing or left when the last job is over: blocks, and keys that nothing removes."""
    blocks: list[int] = []
    left: list[str] = []

    def is_clean() -> bool:
        blocks[:] = [each.num_blocks - each.num_free_blocks for each in fleet.statuses() if each is not None]
        left[:] = keys_left(fleet)
        return not any(blocks) and not left

    wait_until(is_clean, _SETTLE_S + RESULT_TTL_S, poll_s=0.5)
    return sum(blocks), left


def _summary(minutes: float, load: Load, found: Sequence[Trend], blocks_lost: int) -> str:
    growth = {each.name: each.growth for each in found}
    rss = max(value for name, value in growth.items() if name.startswith("rss"))
    return (
        f"soak: minutes={minutes:g} jobs={load.num_jobs.total()} rss_growth_mb={rss:.1f} "
        f"keys={growth['keys']:+.1f} connections={growth['connections']:+.1f} "
        f"threads={growth['threads']:+.1f} blocks_lost={blocks_lost}"
    )


def _write(
    path: Path,
    line: str,
    load: Load,
    found: Sequence[Trend],
    samples: Sequence[Sample],
    faults: Sequence[str],
) -> None:
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "summary": line,
        "jobs": dict(load.num_jobs),
        "faults": list(faults),
        "trends": [asdict(each) | {"is_flat": each.is_flat} for each in found],
        "machine": describe_machine(),
        "versions": describe_versions(),
        "samples": [asdict(sample) for sample in samples],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
