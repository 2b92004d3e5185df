"""AsyncFleetClient: the same fleet, the same errors, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import uuid
from unittest.mock import AsyncMock, create_autospec

import pytest

from pagefleet.api import (
    AsyncFleetClient,
    ContextTooLong,
    FleetSettings,
    InvalidRequest,
    JobLost,
    JobNotFound,
    JobState,
    QueueFull,
    RedisUnavailable,
    StreamTimeout,
    UnknownModel,
    UnknownParameter,
)
from pagefleet.api.client.asynchronous import inbox, subscriber
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.threads.polling import wait_until

SEED_7 = 'zF E;@l9!Uhk= 4"'


@pytest.fixture
async def afleet(null_stack):
    async with AsyncFleetClient(redis_url=null_stack.redis_url) as client:
        yield client


@pytest.fixture
def jobs(null_stack):
    """What the server knows of jobs."""
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    yield store
    store.close_connections()


async def test_iterating_gives_chunks_that_join_to_the_text(afleet):
    stream = await afleet.generate("Hello", seed=7, max_tokens=16)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == SEED_7
    assert len(chunks) > 1
    assert chunks[-1].finish_reason == "length"


async def test_the_result_is_everything(afleet):
    stream = await afleet.generate(prompt_token_ids=[72, 105], seed=7, max_tokens=16)
    result = await stream.result()
    assert (result.text, result.finish_reason, result.state) == (SEED_7, "length", JobState.DONE)
    assert (result.num_prompt_tokens, stream.num_prompt_tokens) == (2, 2)
    assert await stream.text() == SEED_7


async def test_chat(afleet):
    stream = await afleet.chat([{"role": "user", "content": "Hi"}], seed=7, max_tokens=4)
    assert await stream.text() == SEED_7[:4]
    assert stream.num_prompt_tokens == 21


async def test_many_at_once(afleet):
    async def text(seed):
        return await (await afleet.generate("Hello", seed=seed, max_tokens=20)).text()

    texts = await asyncio.gather(*(text(seed) for seed in [7] * 4 + list(range(20))))
    assert len(set(texts)) == 20
    assert texts[:4] == [texts[4 + 7]] * 4


async def test_a_client_without_with_opens_by_itself_and_again_after_close(null_stack, live_only):
    client = AsyncFleetClient(redis_url=null_stack.redis_url)
    for _ in range(2):
        stream = await client.generate("Hello", seed=7, max_tokens=16)
        started = time.monotonic()
        assert await stream.text() == SEED_7
        assert time.monotonic() - started < live_only, "it was read live, not from the log"
        await client.close()


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "nobody"}, UnknownModel, "model"),
        ({"prompt": ""}, InvalidRequest, "prompt"),
        ({"max_token": 8}, UnknownParameter, "max_token"),
        ({"prompt": None, "prompt_token_ids": [1] * 4096}, ContextTooLong, "prompt_token_ids"),
        ({"job_id": "a b"}, InvalidRequest, "job_id"),
    ],
)
async def test_bad_requests_are_refused_here(afleet, fields, error, param):
    with pytest.raises(error) as raised:
        await afleet.generate(**{"prompt": "Hello", **fields})
    assert raised.value.param == param


async def test_bad_messages_are_refused_here(afleet):
    with pytest.raises(InvalidRequest) as raised:
        await afleet.chat("Hello")
    assert raised.value.param == "messages"


async def test_a_text_that_turns_out_too_long_is_rejected_by_the_worker(afleet):
    stream = await afleet.generate("x" * 5000)
    with pytest.raises(ContextTooLong, match="prompt: 5001 tokens do not fit"):
        await anext(stream)
    with pytest.raises(ContextTooLong):
        await stream.result()


async def test_a_full_queue(afleet, ghost):
    waiting = [await afleet.generate("Hello", model=ghost) for _ in range(3)]
    with pytest.raises(QueueFull, match="holds 3 jobs"):
        await afleet.generate("Hello", model=ghost)
    assert all([await stream.leave_running() for stream in waiting])


async def test_the_same_id_reads_the_first_calls_job_and_the_first_stream_stays_live(afleet, live_only):
    job_id = f"test-{uuid.uuid4().hex}"
    first = await afleet.generate("Hello", max_tokens=200, job_id=job_id)
    again = await afleet.generate("Hello", max_tokens=200, job_id=job_id)
    started = time.monotonic()
    for _ in range(20):
        await anext(first)
    assert time.monotonic() - started < live_only
    texts = await asyncio.gather(first.text(), again.text())
    assert texts[0] == texts[1]
    assert len(texts[0]) == 200


@pytest.mark.parametrize("after", [0, 5, 16])
async def test_attach_after_the_end(afleet, after):
    stream = await afleet.generate("Hello", seed=7, max_tokens=16)
    await stream.result()
    attached = await afleet.attach(stream.job_id, after=after)
    assert "".join([chunk.text async for chunk in attached]) == SEED_7[after:]


async def test_attach_in_mid_stream(afleet):
    stream = await afleet.generate("Hello", max_tokens=60)
    await anext(stream)
    attached = await afleet.attach(stream.job_id)
    chunks = [chunk async for chunk in attached]
    assert "".join(chunk.text for chunk in chunks) == await stream.text()
    assert len(chunks) > 5, "live, not one replay"


async def test_attach_to_nothing(afleet):
    with pytest.raises(JobNotFound):
        await afleet.attach("nothing")


async def test_cancel_a_queued_a_running_and_an_ended_job(afleet, ghost):
    queued = await afleet.generate("Hello", model=ghost)
    assert await afleet.cancel(queued.job_id) is True
    assert (await queued.result()).state is JobState.CANCELLED

    running = await afleet.generate("Hello", model="null", max_tokens=2000)
    await anext(running)
    await running.cancel()
    result = await running.result()
    assert (result.state, result.finish_reason) == (JobState.CANCELLED, "cancelled")
    assert 0 < len(result.token_ids) < 1000

    assert await afleet.cancel(running.job_id) is False
    with pytest.raises(JobNotFound):
        await afleet.cancel("nothing")


async def test_a_stream_that_no_worker_serves_gives_up(afleet, ghost):
    stream = await afleet.generate("Hello", model=ghost, idle_timeout=0.3)
    started = time.monotonic()
    with pytest.raises(StreamTimeout):
        await anext(stream)
    assert 0.3 <= time.monotonic() - started < 5


async def test_what_a_slow_reader_does_not_read_is_not_kept(afleet, monkeypatch):
    """It lives off the log, and loses nothing."""
    monkeypatch.setattr(inbox.AsyncInbox.__init__, "__defaults__", (10,))
    stream = await afleet.generate("Hello", seed=7, max_tokens=60)
    await anext(stream)
    while (await afleet.job(stream.job_id, with_log=False)).state is not JobState.DONE:
        assert len(stream._source._inbox) <= 10
        await asyncio.sleep(0.02)
    assert len(await stream.text()) == 60


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_job_that_is_gone_does_not_come_back_with_its_slow_reader(afleet, jobs, monkeypatch, how):
    monkeypatch.setattr(inbox.AsyncInbox.__init__, "__defaults__", (10,))
    slow = await afleet.generate("Hello", max_tokens=60, result_ttl_s=1 if how == "expired" else None)
    await anext(slow)
    if how == "deleted":
        await afleet.delete(slow.job_id)
    assert await asyncio.to_thread(wait_until, lambda: jobs.read(slow.job_id) is None, 10)
    slow._state.wants_replay = True
    with pytest.raises(JobLost):
        await slow.result()
    assert jobs.read(slow.job_id) is None


def test_nor_with_a_synchronous_one(fleet, jobs):
    slow = fleet.generate("Hello", max_tokens=60)
    next(slow)
    fleet.delete(slow.job_id)
    assert wait_until(lambda: jobs.read(slow.job_id) is None, 60)
    slow._state.wants_replay = True
    with pytest.raises(JobLost):
        slow.result()
    assert jobs.read(slow.job_id) is None


async def test_a_reader_that_leaves_while_redis_is_away_has_left_once_it_is_back(afleet, jobs, monkeypatch):
    stream = await afleet.generate("Hello", max_tokens=4000)
    await anext(stream)
    is_asked = asyncio.Event()

    async def away(_):
        is_asked.set()
        raise RedisUnavailable("away")

    monkeypatch.setattr(afleet._live.store, "run", away)
    await stream.close()
    await asyncio.wait_for(is_asked.wait(), 5)
    monkeypatch.undo()
    assert jobs.read(stream.job_id, with_log=False).state is JobState.RUNNING
    ended = await asyncio.to_thread(
        wait_until, lambda: jobs.read(stream.job_id, with_log=False).state is JobState.CANCELLED, 10
    )
    assert ended


@pytest.mark.parametrize(
    ("wait", "outcome"),
    [(lambda s: s.accepted(60), False), (lambda s: s.text(), "")],
    ids=["accepted", "text"],
)
async def test_a_wait_ends_when_its_stream_is_closed(afleet, ghost, wait, outcome):
    stream = await afleet.generate("Hello", model=ghost)
    waiting = asyncio.create_task(wait(stream))
    while stream._source._inbox._waiter is None:
        await asyncio.sleep(0.01)
    await stream.close()
    assert await asyncio.wait_for(waiting, 5) == outcome


async def test_a_stream_goes_on_after_so_many_tokens_of_each_choice(afleet):
    stream = await afleet.generate("Hello", seed=7, max_tokens=16, n=3)
    whole = [choice.text for choice in (await stream.result()).choices]
    rest = ["", "", ""]
    async for chunk in await afleet.attach(stream.job_id, after=[3, 16, 0], keep=False):
        assert chunk.text_offset == 16 - len(whole[chunk.choice][chunk.text_offset :])
        rest[chunk.choice] += chunk.text
    assert rest == [whole[0][3:], "", whole[2]]


async def test_many_readers_on_one_connection(afleet, null_stack):
    """Those of other clients' jobs: one subscription for each job, given up with its last reader."""
    async with AsyncFleetClient(redis_url=null_stack.redis_url) as other:
        streams = [await other.generate("Hello", seed=seed, max_tokens=150) for seed in range(4)]
        attached = [await afleet.attach(stream.job_id) for stream in streams for _ in range(2)]
        subscriber = afleet._live.subscriber
        assert set(subscriber._watched.values()) == {2}
        begun_at = time.monotonic()
        texts = await asyncio.gather(*(stream.text() for stream in attached))
        assert texts == [await stream.text() for stream in streams for _ in range(2)]
        assert time.monotonic() - begun_at < 30
    assert not subscriber._watched
    assert not len(subscriber.routes)


async def test_a_slow_reader_is_not_a_silent_job(afleet):
    stream = await afleet.generate("Hello", seed=7, max_tokens=16, idle_timeout=1.0)
    text = (await anext(stream)).text
    await asyncio.sleep(1.3)
    assert text + "".join([chunk.text async for chunk in stream]) == SEED_7


async def test_a_reader_that_is_cancelled_leaves_the_stream_usable(afleet):
    """`asyncio.timeout` around one chunk loses no token."""
    stream = await afleet.generate("Hello", seed=7, max_tokens=16)
    parts = []
    while True:
        try:
            async with asyncio.timeout(0.003):
                parts.append((await anext(stream)).text)
        except TimeoutError:
            continue
        except StopAsyncIteration:
            break
    assert "".join(parts) == SEED_7


async def test_a_stream_that_was_dropped_half_way_leaves_nothing_behind(afleet):
    stream = await afleet.generate("Hello", max_tokens=100, detached=True)
    job_id = stream.job_id
    await anext(stream)
    routes = afleet._live.subscriber.routes
    assert job_id in routes
    del stream
    gc.collect()
    assert job_id not in routes
    assert len(await (await afleet.attach(job_id)).text()) == 100


async def test_the_call_itself_is_the_context_manager(afleet, jobs):
    async with afleet.generate("Hello", max_tokens=4000) as stream:
        job_id = (await anext(stream), stream.job_id)[1]
        async with afleet.attach(job_id) as attached:
            assert (await anext(attached)).text
        assert attached.has_ended
    assert stream.has_ended
    assert await asyncio.to_thread(wait_until, lambda: jobs.read(job_id).state is JobState.CANCELLED, 5)


async def test_the_call_is_a_coroutine(afleet):
    task = asyncio.create_task(afleet.generate("Hello", seed=7, max_tokens=4))
    streams = await asyncio.gather(
        task, afleet.chat([{"role": "user", "content": "Hi"}], seed=7, max_tokens=4)
    )
    assert [await stream.text() for stream in streams] == [SEED_7[:4]] * 2
    with pytest.raises(InvalidRequest):
        async with afleet.generate(""):
            pass
    afleet.generate("never begun").close()


async def test_models_and_status(afleet):
    assert [card.name for card in await afleet.models()] == ["null"]
    status = await afleet.status()
    assert [worker.model for worker in status.workers] == ["null"]


async def test_a_cancel_that_a_library_swallows_does_not_keep_the_client_open(null_stack, monkeypatch):
    monkeypatch.setattr(subscriber, "BEAT_EVERY_S", 0.0)
    num_beats, is_stuck = 0, asyncio.Event()

    async def beat():
        nonlocal num_beats
        num_beats += 1
        if num_beats == 3:
            is_stuck.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    listener = subscriber.AsyncSubscriber(FleetSettings(redis_url=null_stack.redis_url), "pf:reply:x", beat)
    await listener.open()
    await asyncio.wait_for(is_stuck.wait(), 60)
    closing = asyncio.create_task(listener.close())
    done, _ = await asyncio.wait([closing], timeout=60)
    assert done


def test_a_mock_with_the_clients_spec_is_asynchronous_too():
    mock = create_autospec(AsyncFleetClient, instance=True)
    assert isinstance(mock.generate, AsyncMock)
    assert isinstance(mock.models, AsyncMock)
