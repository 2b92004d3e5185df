"""A submit that is broken off, or whose reply is lost: no job runs of which its caller knows nothing."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from pathlib import Path

import pytest
from celery.exceptions import SoftTimeLimitExceeded

sys.path.insert(0, str(Path(__file__).parents[2]))

from ops.chaos.proxy import Proxy
from pagefleet.api import AsyncFleetClient, FleetClient, FleetSettings, JobState, RedisUnavailable
from pagefleet.api.contract import keys
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.testing import fake_card
from pagefleet.workers.threads.polling import wait_until

QUEUE = keys.queue("fake", "interactive")
MESSAGES = f"{QUEUE}\x06\x164"
TIMEOUT_S = 0.8
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def proxy(redis_server):
    proxy = Proxy(redis_server.port).start()
    yield proxy
    proxy.heal(reset=False)
    proxy.stop()


@pytest.fixture
def near(store, proxy):
    """Settings of a client behind the proxy, which does not wait for long."""
    store.publish_card(fake_card())
    return FleetSettings(
        redis_url=proxy.url, connect_timeout_s=1.0, socket_timeout_s=TIMEOUT_S, card_ttl_s=60
    )


@pytest.fixture
def fleet(near):
    with FleetClient(near) as fleet:
        # So that nothing but the submit itself is asked of a server that does not answer.
        fleet.generate("x", model="fake").close()
        yield fleet


@pytest.fixture
async def afleet(near):
    async with AsyncFleetClient(near) as fleet:
        await (await fleet.generate("x", model="fake")).close()
        # Spare connections: if a heartbeat holds one during a cut, a submit cannot open another.
        await asyncio.gather(*(fleet.models() for _ in range(4)))
        yield fleet


def generate(fleet, **options):
    return fleet.generate("Hello", model="fake", **options)


def chat(fleet, **options):
    return fleet.chat(HI, model="fake", **options)


CALLS = pytest.mark.parametrize("call", [generate, chat], ids=["generate", "chat"])


def open_jobs(store):
    """But for those whose end is not in their books yet."""
    records = [store.read(job_id) for job_id in store.redis.zrange(keys.open_jobs(QUEUE), 0, -1)]
    return {
        record.job_id: record.state for record in records if record is not None and not record.state.is_final
    }


def nothing_open(store):
    return wait_until(lambda: not open_jobs(store), 60)


def only_left_is_closed(store):
    assert nothing_open(store)


class TestTheReplyIsLost:
    @CALLS
    def test_it_is_asked_for_again(self, fleet, store, proxy, call):
        only_left_is_closed(store)
        proxy.cut(to_server=False, to_client=True)
        threading.Timer(1.3 * TIMEOUT_S, proxy.heal, kwargs={"reset": True}).start()
        stream = call(fleet)
        assert open_jobs(store) == {stream.job_id: JobState.QUEUED}
        assert store.redis.keys(f"{QUEUE}*"), "it was enqueued"
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"

    @CALLS
    def test_else_the_error_names_the_job_and_a_retry_reads_it(self, fleet, store, proxy, call):
        only_left_is_closed(store)
        proxy.cut(to_server=False, to_client=True)
        with pytest.raises(RedisUnavailable, match="may have been submitted") as raised:
            call(fleet)
        job_id = raised.value.job_id
        assert repr(job_id) in raised.value.message
        proxy.heal(reset=True)
        # It is there unless the heartbeat had the only connection that was open.
        assert set(open_jobs(store)) <= {job_id}
        again = call(fleet, job_id=job_id)
        assert again.job_id == job_id
        assert open_jobs(store) == {job_id: JobState.QUEUED}
        again.close()
        assert nothing_open(store)

    @CALLS
    async def test_the_async_client_asks_again(self, afleet, store, proxy, call):
        await asyncio.to_thread(only_left_is_closed, store)
        proxy.cut(to_server=False, to_client=True)
        asyncio.get_running_loop().call_later(1.3 * TIMEOUT_S, lambda: proxy.heal(reset=True))
        stream = await call(afleet)
        assert open_jobs(store) == {stream.job_id: JobState.QUEUED}
        await stream.cancel()
        assert (await stream.result()).finish_reason == "cancelled"

    @CALLS
    async def test_else_the_async_error_names_the_job(self, afleet, store, proxy, call):
        await asyncio.to_thread(only_left_is_closed, store)
        proxy.cut(to_server=False, to_client=True)
        with pytest.raises(RedisUnavailable, match="may have been submitted") as raised:
            await call(afleet)
        job_id = raised.value.job_id
        proxy.heal(reset=True)
        again = await call(afleet, job_id=job_id)
        assert again.job_id == job_id
        assert open_jobs(store) == {job_id: JobState.QUEUED}
        await again.close()
        assert await asyncio.to_thread(nothing_open, store)

    def test_a_job_whose_reply_is_lost_has_its_message(self, fleet, store, proxy):
        """The script that creates a job sends its message: neither exists without the other."""
        only_left_is_closed(store)
        store.redis.delete(MESSAGES)
        proxy.cut(to_server=False, to_client=True)
        with pytest.raises(RedisUnavailable, match="may have been submitted") as raised:
            generate(fleet)
        assert open_jobs(store) == {raised.value.job_id: JobState.QUEUED}
        (message,) = store.redis.lrange(MESSAGES, 0, -1)
        assert raised.value.job_id in message
        proxy.heal(reset=True)
        assert generate(fleet, job_id=raised.value.job_id).job_id == raised.value.job_id
        assert store.redis.llen(MESSAGES) == 1

    async def test_each_of_many_errors_names_its_own_job(self, afleet, store, proxy):
        await asyncio.to_thread(only_left_is_closed, store)
        proxy.cut(to_server=False, to_client=True)
        ids = [f"j{index}" for index in range(3)]
        calls = [generate(afleet, job_id=job_id) for job_id in ids]
        alone = await asyncio.gather(*calls, return_exceptions=True)
        together = await afleet.submit_many(
            [{"prompt": "Hello", "job_id": f"m{job_id}"} for job_id in ids], model="fake"
        )
        proxy.heal(reset=True)
        for errors, prefix in ((alone, ""), (together, "m")):
            assert all(isinstance(error, RedisUnavailable) for error in errors)
            assert all("may have been submitted" in error.message for error in errors)
            assert [error.job_id for error in errors] == [prefix + job_id for job_id in ids]


class TestAnAttachThatFails:
    """Its caller has an error, and may try again: it is no reader that has left."""

    def is_still_queued(self, store, job_id):
        gc.collect()
        return not wait_until(lambda: store.read(job_id).state is not JobState.QUEUED, 1.5)

    def test_it_ends_no_job(self, fleet, store, proxy):
        job_id = generate(fleet).leave_running()
        proxy.cut(to_server=False, to_client=True)
        with pytest.raises(RedisUnavailable) as raised:
            fleet.attach(job_id)
        assert raised.value.job_id == job_id
        del raised  # and with it what the failed call held
        proxy.heal(reset=True)
        assert self.is_still_queued(store, job_id)
        fleet.attach(job_id).close()
        assert nothing_open(store)

    def test_also_where_its_log_cannot_be_read(self, fleet, store, monkeypatch):
        job_id = generate(fleet).leave_running()

        def away(_job_id):
            raise RedisUnavailable("away")

        monkeypatch.setattr(fleet._live.store, "read", away)
        with pytest.raises(RedisUnavailable):
            fleet.attach(job_id)
        assert self.is_still_queued(store, job_id)

    async def test_nor_does_an_async_one(self, afleet, store, proxy):
        job_id = await (await generate(afleet)).leave_running()
        proxy.cut(to_server=False, to_client=True)
        with pytest.raises(RedisUnavailable) as raised:
            await afleet.attach(job_id)
        assert raised.value.job_id == job_id
        del raised  # and with it what the failed call held
        proxy.heal(reset=True)
        assert await asyncio.to_thread(self.is_still_queued, store, job_id)


class TestTheCallerIsCancelled:
    async def test_while_the_submit_is_under_way(self, afleet, store, proxy):
        await asyncio.to_thread(only_left_is_closed, store)
        proxy.cut(to_server=False, to_client=True)
        submitting = asyncio.create_task(generate(afleet))
        assert await asyncio.to_thread(wait_until, lambda: open_jobs(store), 60)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        proxy.heal(reset=True)
        assert await asyncio.to_thread(nothing_open, store)

    @pytest.mark.parametrize("options", [{}, {"detached": True}, {"lane": "batch"}], ids=str)
    async def test_before_the_submit_is_sent(self, afleet, store, monkeypatch, options):
        """Nobody else can know the id: a job that needs no reader ends too."""
        await asyncio.to_thread(only_left_is_closed, store)
        sending, go_on = threading.Event(), threading.Event()
        delay_submits(monkeypatch, sending, lambda: go_on.wait(60))
        job = asyncio.create_task(generate(afleet, **options))
        assert await asyncio.to_thread(sending.wait, 60)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        go_on.set()
        assert await asyncio.to_thread(wait_until, lambda: cancelled(store) == 1, 60)

    async def test_whose_client_is_closed_at_once(self, near, store, monkeypatch):
        sending = threading.Event()
        delay_submits(monkeypatch, sending, lambda: time.sleep(0.3))
        async with AsyncFleetClient(near) as fleet:
            job = asyncio.create_task(generate(fleet))
            assert await asyncio.to_thread(sending.wait, 60)
            job.cancel()
        assert cancelled(store) == 1

    async def test_one_with_an_id_of_its_callers_ends_as_others_do(self, afleet, store, monkeypatch):
        """Its caller knows the id: one that needs no reader stays."""
        await asyncio.to_thread(only_left_is_closed, store)
        sending = threading.Event()
        delay_submits(monkeypatch, sending, lambda: time.sleep(0.2))
        for job_id, options in {"alone": {}, "detached": {"detached": True}}.items():
            job = asyncio.create_task(generate(afleet, job_id=job_id, **options))
            assert await asyncio.to_thread(sending.wait, 60)
            sending.clear()
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job

        def states():
            records = [store.read(job_id, with_log=False) for job_id in ("alone", "detached")]
            return [record and record.state for record in records]

        assert await asyncio.to_thread(
            wait_until, lambda: states() == [JobState.CANCELLED, JobState.QUEUED], 60
        )

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, SoftTimeLimitExceeded])
    def test_the_sync_caller_is_broken_off(self, fleet, store, monkeypatch, error):
        only_left_is_closed(store)

        run = fleet._live.batch.run

        def break_off(call):
            run(call)
            raise error

        monkeypatch.setattr(fleet._live.batch, "run", break_off)
        with pytest.raises(error):
            generate(fleet, detached=True)
        assert wait_until(lambda: cancelled(store) == 1, 60)


def delay_submits(monkeypatch, sending, wait):
    """Let submits wait before they are sent, and set ``sending`` when one waits."""
    send = AsyncJobStore.run_together

    async def slowly(store, calls):
        sending.set()
        await asyncio.to_thread(wait)
        return await send(store, calls)

    monkeypatch.setattr(AsyncJobStore, "run_together", slowly)


def cancelled(store):
    """Jobs that were cancelled, but for the one that warmed the client up."""
    records = [store.read(name.removeprefix("pf:job:")) for name in store.redis.keys("pf:job:*")]
    return sum(
        record.state is JobState.CANCELLED and record.request().prompt == "Hello" for record in records
    )
