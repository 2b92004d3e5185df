"""Run one load on the engine in this process or through a fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from pagefleet.api import AsyncFleetClient, FleetClient, WorkerStatus
from pagefleet.engine import EngineRequest, LLMEngine, SamplingParams
from pagefleet.workers.bench.machine import StealMeter
from pagefleet.workers.bench.timing import LoadTiming, StreamTiming
from pagefleet.workers.bench.workload import BenchRequest


class Run(NamedTuple):
    """The timing of a load, and the sizes of its batches: sequences with a token per step that had any.

    ``stolen`` is the share of CPU time that the hypervisor took during the run.
    """

    timing: LoadTiming
    max_batch: int
    mean_batch: float
    stolen: float


def run_in_process(engine: LLMEngine, requests: Sequence[BenchRequest]) -> Run:
    """Run the load on the engine without a queue, in the thread of the caller."""
    meter = StealMeter()
    streams = {}
    for index, request in enumerate(requests):
        params = SamplingParams(max_tokens=request.max_tokens, temperature=0.0, ignore_eos=True)
        streams[f"bench-{index}"] = StreamTiming()
        engine.add_request(EngineRequest(f"bench-{index}", request.prompt_token_ids, params))
    sizes = []
    while engine.has_unfinished_requests:
        outputs = engine.step()
        for output in outputs:
            streams[output.request_id].arrived(len(output.token_ids))
        if outputs:
            sizes.append(len(outputs))
    return Run(LoadTiming(list(streams.values())), max(sizes), sum(sizes) / len(sizes), meter.share())


def run_fleet(redis_url: str, model: str, requests: Sequence[BenchRequest]) -> Run:
    """Run the load from this process through Redis and the workers."""
    return asyncio.run(_run_fleet(redis_url, model, requests))


def run_one(client: FleetClient, model: str, request: BenchRequest) -> StreamTiming:
    """Run one request through a client with open connections."""
    timing = StreamTiming()
    stream = client.generate(
        model=model,
        prompt_token_ids=request.prompt_token_ids,
        max_tokens=request.max_tokens,
        temperature=0.0,
        ignore_eos=True,
    )
    for chunk in stream:
        timing.arrived(len(chunk.token_ids))
    return timing


async def _run_fleet(redis_url: str, model: str, requests: Sequence[BenchRequest]) -> Run:
    async with AsyncFleetClient(redis_url=redis_url) as fleet:
        before = await _worker(fleet)
        meter = StealMeter()
        streams = await asyncio.gather(*(_stream(fleet, model, request) for request in requests))
        stolen = meter.share()
        # Wait for the next heartbeats, with which the worker reports its figures.
        await asyncio.sleep(1.0)
        after = await _worker(fleet)
    num_steps = after.num_decode_steps - before.num_decode_steps
    num_tokens = after.num_generation_tokens - before.num_generation_tokens
    return Run(LoadTiming(streams), after.max_batch_size, num_tokens / max(1, num_steps), stolen)


async def _stream(fleet: AsyncFleetClient, model: str, request: BenchRequest) -> StreamTiming:
    timing = StreamTiming()
    stream = await fleet.generate(
        model=model,
        prompt_token_ids=request.prompt_token_ids,
        max_tokens=request.max_tokens,
        temperature=0.0,
        ignore_eos=True,
    )
    async for chunk in stream:
        timing.arrived(len(chunk.token_ids))
    return timing


async def _worker(fleet: AsyncFleetClient) -> WorkerStatus:
    return (await fleet.status()).workers[0]
