"""A request whose submit is broken off: its client was told of no job, so none goes on."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from ops.chaos.proxy import Proxy
from pagefleet.api import JobState
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.app import make_app
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.testing import fake_card
from pagefleet.workers.threads.polling import wait_until

BODIES = {
    "stream": {"prompt": "x", "stream": True},
    "whole": {"prompt": "x"},
    "background": {"prompt": "x", "background": True},
    "several": {"prompt": ["x", "y", "z"], "stream": True},
}
EACH = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)


@pytest.fixture
def proxy(redis_server):
    proxy = Proxy(redis_server.port).start()
    yield proxy
    proxy.heal(reset=True)
    proxy.stop()


@pytest.fixture
async def client(store, proxy):
    """The application in this process, behind a proxy that may lose replies."""
    store.publish_card(fake_card())
    settings = GatewaySettings(
        redis_url=proxy.url, connect_timeout_s=1.0, socket_timeout_s=0.8, card_ttl_s=60
    )
    app = make_app(settings)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope, receive, send):
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            await client.post("/v1/completions", json={"model": "fake", "prompt": "x", "background": True})
            yield client


def states(store):
    jobs = [name.removeprefix("pf:job:") for name in store.redis.keys("pf:job:*")]
    records = [store.read(job_id) for job_id in jobs]
    # The one that warmed the client up is left out.
    return [record.state for record in sorted(records, key=lambda each: each.times["enqueued_at"])][1:]


def all_cancelled(store):
    return wait_until(lambda: set(states(store)) <= {JobState.CANCELLED}, 60)


@EACH
async def test_a_reply_that_is_lost(client, store, proxy, body):
    proxy.cut(to_server=False, to_client=True)
    reply = await client.post("/v1/completions", json={"model": "fake", **body})
    assert reply.status_code == 503
    proxy.heal(reset=True)
    assert states(store) in ([JobState.QUEUED], []), "no job but that of the reply that was lost"
    assert await asyncio.to_thread(all_cancelled, store)


@EACH
async def test_a_request_that_is_cancelled_meanwhile(client, store, monkeypatch, body):
    sending = threading.Event()
    send = AsyncJobStore.run_together

    async def slowly(store, calls):
        sending.set()
        await asyncio.sleep(0.2)
        return await send(store, calls)

    monkeypatch.setattr(AsyncJobStore, "run_together", slowly)
    request = asyncio.create_task(client.post("/v1/completions", json={"model": "fake", **body}))
    assert await asyncio.to_thread(sending.wait, 60)
    request.cancel()
    await asyncio.wait([request])
    assert await asyncio.to_thread(all_cancelled, store)
