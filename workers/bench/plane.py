"""The cost of everything between the engine's step and the client's token, measured with the null engine."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from pagefleet.api import AsyncFleetClient
from pagefleet.workers.bench.machine import StealMeter, describe_machine, describe_versions
from pagefleet.workers.bench.step_log import Arrivals, StepLog, growth_ms
from pagefleet.workers.bench.thread_times import thread_times
from pagefleet.workers.bench.timing import percentile
from pagefleet.workers.local.local_stack import LocalStack

STEP_S: Final = 0.02
LOADS: Final = (512, 1024)
"""Streams. Each gets a token in every step."""
GOALS: Final = {"worker_cores": 0.25, "lag_p50_ms": 10.0, "lag_p99_ms": 25.0}
"""Of 512 streams."""
_PROMPT_LEN: Final = 16
_MAX_TOKENS: Final = 4000
_SETTLE_S: Final = 1.0
_MEASURED_S: Final = 8.0


class Window(NamedTuple):
    """What the client measured while all streams were running: CPU seconds of each process."""

    begin: float
    end: float
    worker: dict[str, float]
    """By thread."""
    server: float
    client: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def run_plane_bench(num_rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run each load through its own fleet: one worker, one server, one asyncio client in this process."""
    return {
        "machine": describe_machine(),
        "versions": describe_versions(),
        "step_ms": STEP_S * 1000,
        "goals": GOALS,
        "loads": [
            {"streams": num, "rounds": [_run_round(num, index, progress) for index in range(num_rounds)]}
            for num in LOADS
        ],
    }


def _run_round(num_streams: int, index: int, progress: Callable[[str], None]) -> dict[str, Any]:
    figures = run_load(num_streams)
    progress(f"{num_streams} streams, round {index + 1}: {figures}")
    return figures


def run_load(num_streams: int, *, measured_s: float = _MEASURED_S) -> dict[str, Any]:
    """Return the figures of one load, measured for ``measured_s`` while all streams are running."""
    meter = StealMeter()
    with tempfile.TemporaryDirectory(prefix="pagefleet-bench-") as folder:
        trace = Path(folder) / "trace.json"
        with LocalStack(Path(folder), _worker_arguments(num_streams, trace), drain_s=5.0) as stack:
            streams: dict[str, Arrivals] = {}
            window = asyncio.run(_measure(stack, num_streams, streams, measured_s))
        figures = _figures(window, streams, StepLog.read(trace))
    figures["stolen"] = round(meter.share(), 4)
    return figures


def _worker_arguments(num_streams: int, trace: Path) -> list[str]:
    options = {
        "--model": "null",
        "--backend": "null",
        "--null-step-time": STEP_S,
        "--max-num-seqs": num_streams,
        "--num-blocks": num_streams * (_MAX_TOKENS // 16 + 2),
        # More than the sequences, so that no step leaves one out.
        "--max-num-batched-tokens": num_streams * 2,
        "--max-queue-depth": 2 * num_streams,
        "--speculate": 0,
        "--trace-steps": 10**6,
        "--trace-file": trace,
    }
    return [str(part) for pair in options.items() for part in pair]


async def _measure(
    stack: LocalStack, num_streams: int, streams: dict[str, Arrivals], measured_s: float
) -> Window:
    """Start all streams, measure while each of them gets tokens, and end them."""
    stop = asyncio.Event()
    async with AsyncFleetClient(redis_url=stack.redis_url) as fleet:
        readers = [asyncio.create_task(_read(fleet, streams, stop)) for _ in range(num_streams)]
        while len(streams) < num_streams:
            await asyncio.sleep(0.1)
            _raise_failure(readers)
        await asyncio.sleep(_SETTLE_S)
        begin, before = time.perf_counter(), _used(stack)
        await asyncio.sleep(measured_s)
        end, after = time.perf_counter(), _used(stack)
        stop.set()
        await asyncio.gather(*readers)
    return Window(
        begin,
        end,
        {name: seconds - before[0].get(name, 0.0) for name, seconds in after[0].items()},
        after[1] - before[1],
        after[2] - before[2],
    )


async def _read(fleet: AsyncFleetClient, streams: dict[str, Arrivals], stop: asyncio.Event) -> None:
    """Read one stream until the measurement is over. Leaving it cancels its job."""
    arrivals = Arrivals()
    async with fleet.generate(
        model="null", prompt_token_ids=[65] * _PROMPT_LEN, max_tokens=_MAX_TOKENS, ignore_eos=True
    ) as stream:
        async for chunk in stream:
            arrivals.add(time.perf_counter(), chunk.end)
            if len(arrivals.times) == 1:
                streams[stream.job_id] = arrivals
            if stop.is_set():
                return
    raise RuntimeError("A stream ended before the measurement was over.")


def _raise_failure(readers: list[asyncio.Task[None]]) -> None:
    for reader in readers:
        if reader.done():
            reader.result()


def _used(stack: LocalStack) -> tuple[dict[str, float], float, float]:
    assert stack.server is not None
    worker, server = thread_times(stack.workers[0].pid), thread_times(stack.server.pid)
    return worker, sum(server.values()), time.process_time()


def _figures(window: Window, streams: dict[str, Arrivals], steps: StepLog) -> dict[str, Any]:
    begin, end = window.begin, window.end
    found = steps.lags(streams, begin, end)
    lags, num_tokens = [lag for _, lag in found], len(found)
    worker_s = sum(window.worker.values())
    threads = sorted(window.worker.items(), key=lambda pair: -pair[1])[:8]
    return {
        "tok_s": round(num_tokens / window.seconds),
        "step_ms": round(steps.interval_ms(begin, end), 2),
        "worker_cores": round(worker_s / window.seconds, 3),
        "us_a_token": {
            "worker": round(worker_s / num_tokens * 1e6, 1),
            "server": round(window.server / num_tokens * 1e6, 1),
            "client": round(window.client / num_tokens * 1e6, 1),
        },
        "us_a_token_by_thread": {name: round(seconds / num_tokens * 1e6, 1) for name, seconds in threads},
        "lag_p50_ms": round(percentile(lags, 0.5), 2),
        "lag_p99_ms": round(percentile(lags, 0.99), 2),
        "lag_min_ms": round(min(lags), 2),
        "lag_growth_ms": round(growth_ms(found), 2),
    }
