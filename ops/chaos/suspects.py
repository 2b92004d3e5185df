"""``python -m ops.chaos.suspects``: how many jobs a kill -9 would make start alone, sampled without killing.

Two or more suspects of a dead worker start alone, one after the other; a sole suspect is blamed. Kills are
rare events, so the number of suspects of a live worker is sampled instead, at random moments of a load.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import click

from pagefleet.api import FleetClient
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.local_stack import LocalStack

_NUM_TOKENS = 30
_PAUSE_S = (0.001, 0.004)


@click.command()
@click.option("--rate", default=40.0, show_default=True, help="Bursts a second, at random moments.")
@click.option("--burst", default=1, show_default=True, help="Jobs that are submitted together.")
@click.option("--step-time", default=0.02, show_default=True, help="Of the null engine, in seconds.")
@click.option("--prompt-len", default=100, show_default=True)
@click.option("--seconds", default=15.0, show_default=True)
def main(rate: float, burst: int, step_time: float, prompt_len: int, seconds: float) -> None:
    """Sample the suspects of one worker, and measure the time to the first token."""
    arguments = ["--model", "null", "--backend", "null", "--null-step-time", str(step_time)]
    with tempfile.TemporaryDirectory() as home, LocalStack(Path(home), arguments) as stack:
        store = JobStore(FleetSettings(redis_url=stack.redis_url))
        (worker,) = store.workers()
        counts: Counter[int] = Counter()
        is_over = threading.Event()
        sampler = threading.Thread(target=_sample, args=(store, worker.worker_id, counts, is_over))
        with FleetClient(redis_url=stack.redis_url) as client:
            sampler.start()
            job_ids = _load(client, random.Random(5), rate, burst, prompt_len, seconds)
        is_over.set()
        sampler.join()
        _print(counts, sorted(_first_token_ms(store, job_id) for job_id in job_ids))
        store.close_connections()


def _sample(store: JobStore, worker_id: str, counts: Counter[int], is_over: threading.Event) -> None:
    rng = random.Random(3)
    while not is_over.wait(rng.uniform(*_PAUSE_S)):
        counts[int(store.redis.scard(keys.suspects(worker_id)))] += 1


def _load(
    client: FleetClient, rng: random.Random, rate: float, burst: int, prompt_len: int, seconds: float
) -> list[str]:
    """Submit jobs for some seconds and wait for all of them. Return their ids."""
    streams = []
    begun_at = due_at = time.monotonic()
    while due_at < begun_at + seconds:
        time.sleep(max(0.0, due_at - time.monotonic()))
        for _ in range(burst):
            # Without a common prefix: a job would wait for the blocks of another job.
            prompt = [rng.randrange(32, 127) for _ in range(prompt_len)]
            streams.append(client.generate(prompt_token_ids=prompt, max_tokens=_NUM_TOKENS))
        due_at += rng.expovariate(rate)
    for stream in streams:
        stream.result()
    return [stream.job_id for stream in streams]


def _first_token_ms(store: JobStore, job_id: str) -> int:
    fields = store.read(job_id).fields
    return int(fields["first_token_at"]) - int(fields["enqueued_at"])


def _print(counts: Counter[int], ttft_ms: list[int]) -> None:
    num = counts.total()
    mean = sum(size * times for size, times in counts.items()) / num
    solo = sum(size * times for size, times in counts.items() if size > 1) / num
    click.echo(
        f"{len(ttft_ms)} jobs, {num} samples: suspects {mean:.3f}  solo a kill {solo:.3f}  "
        f"blamed a kill {counts[1] / num:.3f}  "
        f"first token p50 {ttft_ms[len(ttft_ms) // 2]} ms, p90 {ttft_ms[len(ttft_ms) * 9 // 10]} ms"
    )


if __name__ == "__main__":
    main()
