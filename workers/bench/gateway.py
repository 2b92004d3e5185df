"""The delay of tokens through the gateway compared to a FleetClient.

One process reads the same jobs in both ways at the same time; the lag of a token is the difference between
its two arrivals. The null backend generates tokens at a fixed rate.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psutil

from pagefleet.api import AsyncFleetClient
from pagefleet.api.config.event_loop import loop_factory
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.workers.bench.machine import describe_machine
from pagefleet.workers.bench.timing import percentile
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

_SETTLED_S: Final = 1.0
"""The first second of each stream is not compared: an attached stream gets its backlog at once."""


class Load(NamedTuple):
    num_streams: int
    tok_s: float
    """Rate of each stream."""
    num_tokens: int
    goals_ms: dict[str, float]


LOADS: Final = (
    Load(64, 50.0, 400, {"p50": 2.0, "p99": 8.0}),
    Load(512, 10.0, 120, {"p99": 250.0}),
)


def run_gateway_bench(num_rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run each load through its own fleet and gateway."""
    return {
        "machine": describe_machine(),
        "loads": [_run_load(load, num_rounds, progress) for load in LOADS],
    }


def _run_load(load: Load, num_rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    arguments = ["--model", "null", "--backend", "null", "--null-step-time", str(1 / load.tok_s)]
    arguments += ["--max-num-seqs", str(load.num_streams), "--num-blocks", str(load.num_streams * 16)]
    with (
        tempfile.TemporaryDirectory(prefix="pagefleet-bench-") as folder,
        LocalStack(Path(folder), arguments) as stack,
    ):
        gateway = GatewayProcess(
            stack.redis_url, GatewaySettings(), 0, log_file=Path(folder) / "gateway.log"
        ).start()
        try:
            gateway.wait_ready()
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                rounds = [
                    runner.run(_measure(gateway, stack.redis_url, load, index, progress))
                    for index in range(num_rounds)
                ]
        finally:
            gateway.terminate()
            gateway.wait(30)
    return {"streams": load.num_streams, "tok_s": load.tok_s, "goals_ms": load.goals_ms, "rounds": rounds}


async def _measure(
    gateway: GatewayProcess, redis_url: str, load: Load, index: int, progress: Callable[[str], None]
) -> dict[str, float]:
    process = psutil.Process(gateway.pid)
    before, begun_at = process.cpu_times(), time.monotonic()
    async with AsyncFleetClient(redis_url=redis_url) as fleet:
        streams = (_stream(fleet, gateway.url, load, seed) for seed in range(load.num_streams))
        lags = [lag for found in await asyncio.gather(*streams) for lag in found]
    after, took_s = process.cpu_times(), time.monotonic() - begun_at
    figures = {f"p{q * 100:g}": round(percentile(lags, q), 2) for q in (0.5, 0.99, 1.0)}
    figures["gateway_cores"] = round((after.user + after.system - before.user - before.system) / took_s, 2)
    figures["compared"] = len(lags)
    progress(f"{load.num_streams} streams at {load.tok_s:g} tok/s, round {index + 1}: {figures}")
    return figures


async def _stream(fleet: AsyncFleetClient, url: str, load: Load, seed: int) -> list[float]:
    """Return the lag of each token in milliseconds."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    host, port = str(address.hostname), int(address.port or 80)
    transport, reader = await loop.create_connection(_EventReader, host, port)
    try:
        body = json.dumps(
            {
                "model": "null",
                "prompt": "x",
                "max_tokens": load.num_tokens,
                "seed": seed,
                "stream": True,
                "stream_options": {"include_ids": True},
            }
        )
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        direct = asyncio.create_task(_read_direct(fleet, await reader.job_id))
        return _lags(await direct, await reader.arrivals)
    finally:
        transport.close()


class Arrivals(NamedTuple):
    """The times of arrival: pairs of the number of tokens so far and the time."""

    begun_at: float
    ends: list[tuple[int, float]]

    def by_token(self, count: int) -> list[float]:
        times: list[float] = []
        for end, at in self.ends:
            times += [at] * (min(end, count) - len(times))
        return times


class _EventReader(asyncio.Protocol):
    """Records when data arrives and the number of tokens in the ids of its events.

    It parses nothing else, as that would delay the events that it measures.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.job_id: asyncio.Future[str] = loop.create_future()
        self.arrivals: asyncio.Future[Arrivals] = loop.create_future()
        self._arrivals = Arrivals(time.monotonic(), [])
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        at = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"id: "):
                self._arrivals.ends.append((int(line[4:]), at))
            elif line.startswith(b"x-pagefleet-job: "):
                self.job_id.set_result(line.partition(b" ")[2].decode().strip())
            elif line == b"data: [DONE]":
                self.arrivals.set_result(self._arrivals)

    def connection_lost(self, error: Exception | None) -> None:
        for wanted in (self.job_id, self.arrivals):
            if not wanted.done():
                wanted.set_exception(RuntimeError("The gateway ended or refused a stream of the benchmark."))


async def _read_direct(fleet: AsyncFleetClient, job_id: str) -> Arrivals:
    arrivals = Arrivals(time.monotonic(), [])
    async for chunk in await fleet.attach(job_id, keep=False):
        arrivals.ends.append((chunk.end, time.monotonic()))
    return arrivals


def _lags(direct: Arrivals, through: Arrivals) -> list[float]:
    count = min(direct.ends[-1][0], through.ends[-1][0])
    pairs = zip(direct.by_token(count), through.by_token(count), strict=True)
    return [(late - early) * 1000 for early, late in pairs if early > direct.begun_at + _SETTLED_S]
