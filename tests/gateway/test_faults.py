"""What dies behind the gateway: its clients notice a pause, and no more."""

from __future__ import annotations

import asyncio
import signal

import openai
import pytest

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02", "--lease-seconds", "1"]
NUM_TOKENS = 200
NUM_STREAMS = 8


def expected(seed):
    return "".join(chr(null_token(seed, 0, position)) for position in range(NUM_TOKENS))


@pytest.fixture(scope="module")
def stack(server_binary, own_environment, tmp_path_factory):
    with LocalStack(tmp_path_factory.mktemp("faults"), NULL, num_workers=2, drain_s=0.0) as stack:
        yield stack


@pytest.fixture(scope="module")
def door(stack, tmp_path_factory):
    gateway = GatewayProcess(
        stack.redis_url, GatewaySettings(), 0, log_file=tmp_path_factory.mktemp("door") / "gateway.log"
    ).start()
    yield gateway.wait_ready()
    gateway.terminate()
    gateway.wait(60)


class Streams:
    """Some at once, read as a client does that knows nothing of faults."""

    def __init__(self, door):
        self._ai = openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0, timeout=60)
        self.texts = dict.fromkeys(range(NUM_STREAMS), "")
        self._readers = [asyncio.create_task(self._read(seed)) for seed in self.texts]

    async def all_begun(self):
        while min(map(len, self.texts.values())) < 10:
            assert not any(reader.done() for reader in self._readers)
            await asyncio.sleep(0.01)

    async def all_ended(self):
        await asyncio.gather(*self._readers)
        await self._ai.close()

    async def _read(self, seed):
        stream = await self._ai.completions.create(
            model="null", prompt="x", max_tokens=NUM_TOKENS, seed=seed, stream=True
        )
        async for chunk in stream:
            self.texts[seed] += chunk.choices[0].text


async def test_a_worker_is_killed(stack, door):
    streams = Streams(door)
    await streams.all_begun()
    stack.workers[0].send_signal(signal.SIGKILL)
    await streams.all_ended()
    assert streams.texts == {seed: expected(seed) for seed in range(NUM_STREAMS)}


async def test_redis_is_killed_and_comes_back(stack, door):
    streams = Streams(door)
    await streams.all_begun()
    stack.server.kill()
    await asyncio.to_thread(stack.server.start)
    await streams.all_ended()
    assert streams.texts == {seed: expected(seed) for seed in range(NUM_STREAMS)}
