"""The cost of a job's beginning and end: submits by one producer, and short jobs in one worker.

The server, the worker and the producer are processes of their own; the worker has the null backend. First the
producer submits all jobs while no worker runs, then a worker takes and ends them. Task events are on, and a
subscriber like Flower's receives them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from pagefleet.api import AsyncFleetClient
from pagefleet.api.config.event_loop import loop_factory
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.workers.bench.machine import describe_machine, describe_versions
from pagefleet.workers.bench.thread_times import thread_times
from pagefleet.workers.bench.timing import median
from pagefleet.workers.local.local_stack import LocalStack, WorkerProcess

_MODEL: Final = "null"
_WORKER: Final = (
    "--model", _MODEL, "--backend", "null", "--null-step-time", "0.002",
    "--max-num-seqs", "256", "--num-blocks", "8192", "--max-queue-depth", "1000000",
)  # fmt: skip
_EVENTS: Final = "/0.celeryev/*"
_POLL_S: Final = 0.02
_READY_S: Final = 60.0
_MAX_WORK_S: Final = 120.0
_NUM_JOBS: Final = 4096
_BURST: Final = 1024
_GOALS: Final = {"submits_per_s": 3000, "jobs_per_s": 1200, "burst_of_1024_s": 0.4}


def run_ingest_bench(num_rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of each round, and their medians."""
    rounds = []
    for index in range(num_rounds):
        rounds.append(_run_round())
        progress(f"round {index + 1}/{num_rounds}: {rounds[-1]}")
    names = ("submits_per_s", "burst_of_1024_s", "jobs_per_s")
    return {
        "median": {name: median([each[name] for each in rounds]) for name in names},
        "goals": _GOALS,
        "num_jobs": _NUM_JOBS,
        "rounds": rounds,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }


def _run_round() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pagefleet-bench-") as name:
        folder = Path(name)
        with LocalStack(folder, _WORKER) as stack:
            # Its card stays: clients submit to the model without a worker.
            stack.workers[0].terminate()
            stack.workers[0].wait(30)
            assert stack.server is not None
            server = psutil.Process(stack.server.pid)
            submits = _submit(stack.redis_url, server)
            return {**submits, **_work(stack.redis_url, folder, submits["num_open"], server)}


def _submit(redis_url: str, server: psutil.Process) -> dict[str, Any]:
    before = _cpu_s(server)
    command = [sys.executable, "-m", "pagefleet.workers.bench.ingest", _MODEL, str(_NUM_JOBS)]
    environment = {**os.environ, "REDIS_URL": redis_url}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    server_us = (_cpu_s(server) - before) / figures["num_open"] * 1e6
    return {**figures, "server_us_per_submit": round(server_us, 1)}


def _work(redis_url: str, folder: Path, num_jobs: int, server: psutil.Process) -> dict[str, Any]:
    """Let a worker end all jobs of the queue."""
    client: Any = redis.Redis.from_url(redis_url)
    with client, _recorded_events(client) as payloads:
        worker = WorkerProcess(redis_url, _WORKER, log_file=folder / "measured.log").start()
        try:
            worker.wait_ready(_READY_S)
            before, server_before = thread_times(worker.pid), _cpu_s(server)
            deadline = time.monotonic() + _MAX_WORK_S
            while client.zcard(keys.open_jobs(keys.queue(_MODEL, "interactive"))):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"The worker has not ended its jobs after {_MAX_WORK_S:g} s.")
                time.sleep(_POLL_S)
            # The last acknowledgements and events.
            time.sleep(0.5)
            after, server_after = thread_times(worker.pid), _cpu_s(server)
        finally:
            worker.terminate()
            worker.wait(30)
    events = list(_parsed(payloads))
    received = [event["timestamp"] for event in events if event["type"] == "task-received"]
    ended = [event["timestamp"] for event in events if event["type"] == "task-succeeded"]
    spent = {name: round((after[name] - before.get(name, 0.0)) / num_jobs * 1e6, 1) for name in after}
    return {
        "jobs_per_s": round(len(ended) / (max(ended) - min(received)), 1),
        "worker_us_per_job": round(sum(spent.values()), 1),
        "worker_threads_us_per_job": {name: us for name, us in spent.items() if us >= 1},
        "server_us_per_job": round((server_after - server_before) / num_jobs * 1e6, 1),
        "events": dict(Counter(event["type"] for event in events if event["type"].startswith("task-"))),
    }


@contextlib.contextmanager
def _recorded_events(client: Any) -> Iterator[list[bytes]]:
    """Record the payloads of Celery's events while the context is open."""
    payloads: list[bytes] = []
    listener, stop = client.pubsub(ignore_subscribe_messages=True), threading.Event()
    listener.psubscribe(_EVENTS)

    def record() -> None:
        while not stop.is_set():
            message = listener.get_message(timeout=0.2)
            if message is not None:
                payloads.append(message["data"])

    thread = threading.Thread(target=record, daemon=True)
    thread.start()
    try:
        yield payloads
    finally:
        stop.set()
        thread.join()
        listener.close()


def _parsed(payloads: list[bytes]) -> Iterator[Mapping[str, Any]]:
    """Celery sends one event, or a list of events, in a message."""
    for payload in payloads:
        body = json.loads(base64.b64decode(json.loads(payload)["body"]))
        yield from body if isinstance(body, list) else [body]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _request(model: str, index: int) -> dict[str, Any]:
    ids = [1 + (index * 7 + place) % 250 for place in range(16)]
    return {"model": model, "prompt_token_ids": ids, "max_tokens": 4, "detached": True, "ignore_eos": True}


async def _burst(fleet: AsyncFleetClient, model: str, num_jobs: int) -> float:
    """Submit jobs with one concurrent ``generate`` each. Return the seconds."""
    begun_at = time.perf_counter()
    streams = await asyncio.gather(*(fleet.generate(**_request(model, index)) for index in range(num_jobs)))
    took_s = time.perf_counter() - begun_at
    for stream in streams:
        await stream.leave_running()
    return took_s


async def _submit_all(model: str, num_jobs: int) -> dict[str, Any]:
    async with AsyncFleetClient() as fleet:
        await _burst(fleet, model, 8)
        burst_s = await _burst(fleet, model, _BURST)
        requests = [_request(model, index) for index in range(num_jobs)]
        before, begun_at = time.process_time(), time.perf_counter()
        streams = await fleet.submit_many(requests)
        took_s, cpu_s = time.perf_counter() - begun_at, time.process_time() - before
        for stream in streams:
            if isinstance(stream, FleetError):
                raise stream
            await stream.leave_running()
    return {
        "burst_of_1024_s": round(burst_s, 3),
        "submits_per_s": round(num_jobs / took_s, 1),
        "producer_us_per_submit": round(cpu_s / num_jobs * 1e6, 1),
        "num_open": 8 + _BURST + num_jobs,
    }


def run_producer() -> None:
    """The producer's process: submit jobs and print the figures as JSON."""
    model, num_jobs = sys.argv[1], int(sys.argv[2])
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        json.dump(runner.run(_submit_all(model, num_jobs)), sys.stdout)


if __name__ == "__main__":
    run_producer()
