"""Many submits at once: few round trips, each checked as alone."""

from __future__ import annotations

import asyncio

import pytest

from pagefleet.api import (
    AsyncFleetClient,
    FleetClient,
    InvalidRequest,
    JobExists,
    QueueFull,
    UnknownModel,
    UnknownParameter,
)
from pagefleet.api.contract import keys
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.testing import AsyncInMemoryFleet, InMemoryFleet, fake_card

MODELS = [fake_card("m", max_queue_depth=500), fake_card("small", max_queue_depth=2)]
NUM_BURST = 300


@pytest.fixture(params=["sync", "async", "fake", "async fake"])
def many(request, store, blocking):
    """A fleet of two models without workers."""
    for card in MODELS:
        store.publish_card(card)
    if request.param == "fake":
        yield InMemoryFleet(models=MODELS, paused=True)
    elif request.param == "async fake":
        yield blocking(AsyncInMemoryFleet(models=MODELS, paused=True))
    elif request.param == "sync":
        with FleetClient(store.settings) as fleet:
            yield fleet
    else:
        fleet = blocking(AsyncFleetClient(store.settings))
        yield fleet
        fleet.close()


def test_streams_come_in_the_order_of_the_requests(many):
    requests = [{"prompt": str(index), "job_id": f"j{index}"} for index in range(300)]
    streams = many.submit_many(requests, model="m", max_tokens=3, detached=True)
    assert [stream.job_id for stream in streams] == [f"j{index}" for index in range(300)]
    for index in (0, 127, 128, 299):
        assert many.job(f"j{index}").request().prompt == str(index)


def test_texts_ids_and_conversations(many):
    streams = many.submit_many(
        [
            "text",
            {"prompt_token_ids": [1, 2], "max_tokens": 9},
            {"messages": [{"role": "user", "content": "Hi"}], "lane": "batch"},
        ],
        model="m",
        max_tokens=5,
    )
    text, ids, chat = [many.job(stream.job_id).request() for stream in streams]
    assert (text.prompt, text.sampling.max_tokens) == ("text", 5)
    assert (ids.prompt_token_ids, ids.sampling.max_tokens) == ([1, 2], 9)
    assert (chat.messages[0].content, chat.lane) == ("Hi", "batch")


def test_a_wrong_request_is_an_error_in_its_place(many):
    results = many.submit_many(
        [
            "good",
            {"prompt": ""},
            {"prompt": "x", "max_tokens": 0},
            {"prompt": "x", "maxtokens": 3},
            {"prompt": "x", "model": "ghost"},
            {"messages": [{"role": "user", "content": "x"}], "tools": "none"},
            "good",
        ],
        model="m",
    )
    kinds = [type(each) for each in results[1:6]]
    assert kinds == [InvalidRequest, InvalidRequest, UnknownParameter, UnknownModel, InvalidRequest]
    assert many.job(results[0].job_id).request().prompt == many.job(results[6].job_id).request().prompt


def test_limits_hold_and_the_job_is_named(many):
    results = many.submit_many([{"prompt": "x", "job_id": f"j{n}"} for n in range(4)], model="small")
    assert [type(each) is QueueFull for each in results] == [False, False, True, True]
    assert [each.job_id for each in results] == ["j0", "j1", "j2", "j3"]


def test_an_id_that_exists_is_read_or_refused(many):
    many.submit_many([{"prompt": "x", "job_id": "j"}], model="m", seed=1, detached=True)
    same, other, first, twin = many.submit_many(
        [
            {"prompt": "x", "job_id": "j"},
            {"prompt": "y", "job_id": "j"},
            {"prompt": "z", "job_id": "k"},
            {"prompt": "z", "job_id": "k"},
        ],
        model="m",
        seed=1,
        detached=True,
    )
    assert same.job_id == "j"
    assert isinstance(other, JobExists)
    assert first.job_id == twin.job_id == "k"


def test_nothing_is_nothing(many):
    assert many.submit_many([]) == []


def test_every_job_has_one_message(store):
    store.publish_card(MODELS[0])
    with FleetClient(store.settings) as fleet:
        fleet.submit_many(["x"] * 200, model="m", detached=True)
    queue = keys.queue("m", "interactive")
    assert store.redis.llen(f"{queue}\x06\x164") == store.redis.zcard(keys.open_jobs(queue)) == 200


class TestConcurrentCalls:
    """Calls of one event loop share round trips."""

    @pytest.fixture
    async def afleet(self, store):
        store.publish_card(MODELS[0])
        async with AsyncFleetClient(store.settings) as fleet:
            await (await fleet.generate("x", model="m")).close()
            yield fleet

    async def test_a_burst_takes_few_round_trips(self, afleet, monkeypatch):
        sizes = []
        run_together = AsyncJobStore.run_together

        async def counted(store, calls):
            sizes.append(len(calls))
            return await run_together(store, calls)

        monkeypatch.setattr(AsyncJobStore, "run_together", counted)
        streams = await asyncio.gather(
            *(afleet.generate("x", model="m", detached=True) for _ in range(NUM_BURST))
        )
        assert len({stream.job_id for stream in streams}) == sum(sizes) == NUM_BURST
        assert len(sizes) <= 6

    async def test_each_call_gets_its_own_verdict(self, afleet):
        await afleet.generate("x", model="m", job_id="j", seed=1)
        calls = [afleet.generate(text, model="m", job_id="j", seed=1) for text in ("x", "y")]
        same, other = await asyncio.gather(*calls, return_exceptions=True)
        assert same.job_id == "j"
        assert isinstance(other, JobExists)

    async def test_a_server_that_forgot_the_script_gets_it(self, afleet, store):
        await asyncio.to_thread(store.redis.script_flush)
        calls = [afleet.generate("x", model="m") for _ in range(3)]
        assert len({stream.job_id for stream in await asyncio.gather(*calls)}) == 3
        await asyncio.to_thread(store.redis.script_flush)
        assert len(await afleet.submit_many(["x"] * 3, model="m")) == 3
