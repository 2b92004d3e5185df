"""A job ends with its last reader, however that one leaves; a detached one needs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from test_client_processes import in_forked_child

from pagefleet.api import AsyncFleetClient, FleetClient, FleetSettings, JobState, StreamTimeout
from pagefleet.api.contract import keys
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.threads.polling import wait_until

MANY = 4000
"""Tokens: 20 s."""


@pytest.fixture
def jobs(null_stack):
    """What the server knows of jobs. Whatever still runs at the end is stopped."""
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    yield store
    for name in store.redis.zrange(keys.open_jobs("pagefleet.null.interactive"), 0, -1):
        store.cancel(name)
    store.close_connections()


@pytest.fixture
async def afleet(null_stack):
    async with AsyncFleetClient(redis_url=null_stack.redis_url) as client:
        yield client


def state(jobs, job_id):
    record = jobs.read(job_id, with_log=False)
    return None if record is None else record.state


def is_cancelled(jobs, job_id, within_s=15):
    return wait_until(lambda: state(jobs, job_id) is JobState.CANCELLED, within_s)


def goes_on(jobs, job_id, for_s=1.0):
    """Longer than a departure waits to be told."""
    return not wait_until(lambda: state(jobs, job_id) is not JobState.RUNNING, for_s)


def close(stream):
    next(stream)
    stream.close()


def leave_the_block(stream):
    with stream:
        next(stream)


def break_off(stream):
    for _chunk in stream:
        break


def leave_a_generator(stream):
    def texts():
        with stream:
            for chunk in stream:
                yield chunk.text

    generator = texts()
    next(generator)
    generator.close()


def fail(stream):
    with contextlib.suppress(RuntimeError):
        for _chunk in stream:
            raise RuntimeError


WAYS = [close, leave_the_block, break_off, leave_a_generator, fail]


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
def test_a_running_job_ends_with_it(fleet, jobs, leave):
    stream = fleet.generate("Hello", max_tokens=MANY)
    job_id = stream.job_id
    leave(stream)
    del stream
    gc.collect()
    assert is_cancelled(jobs, job_id)


def test_a_queued_one_too_and_it_is_closed(fleet, jobs, ghost):
    stream = fleet.generate("Hello", model=ghost)
    stream.close()
    assert is_cancelled(jobs, stream.job_id)
    ledger = keys.open_jobs("pagefleet.ghost.interactive")
    assert wait_until(lambda: jobs.redis.zscore(ledger, stream.job_id) is None, 60)


def test_one_that_was_attached_to(fleet, jobs, null_stack):
    """The producer has gone; its reader was the last one."""
    with FleetClient(redis_url=null_stack.redis_url) as other:
        stream = fleet.generate("Hello", max_tokens=MANY)
        attached = other.attach(stream.job_id)
        close(stream)
        assert goes_on(jobs, stream.job_id)
        next(attached)
        attached.close()
        assert is_cancelled(jobs, stream.job_id)


def test_not_with_the_first_of_two_in_one_process(fleet, jobs):
    stream = fleet.generate("Hello", max_tokens=MANY)
    attached = fleet.attach(stream.job_id)
    close(stream)
    assert goes_on(jobs, stream.job_id)
    close(attached)
    assert is_cancelled(jobs, stream.job_id)


@pytest.mark.parametrize("options", [{"detached": True}, {"lane": "batch"}], ids=str)
def test_not_one_that_needs_nobody(fleet, jobs, options):
    stream = fleet.generate("Hello", max_tokens=MANY, **options)
    close(stream)
    assert goes_on(jobs, stream.job_id)
    fleet.cancel(stream.job_id)


def test_not_one_that_is_left_running(fleet, jobs):
    stream = fleet.generate("Hello", max_tokens=MANY)
    next(stream)
    job_id = stream.leave_running()
    del stream
    gc.collect()
    assert goes_on(jobs, job_id)


@pytest.mark.parametrize("then", ["closed", "dropped"])
def test_not_after_the_callers_timeout(fleet, jobs, ghost, then):
    """``StreamTimeout`` says that the job can be read later."""
    stream = fleet.generate("Hello", model=ghost, idle_timeout=0.1)
    job_id = stream.job_id
    with pytest.raises(StreamTimeout):
        next(stream)
    if then == "closed":
        stream.close()
    else:
        del stream
        gc.collect()
    assert not wait_until(lambda: state(jobs, job_id) is not JobState.QUEUED, 1)


def test_not_in_a_forked_child_that_drops_what_it_inherited(fleet, jobs):
    stream = fleet.generate("Hello", max_tokens=MANY)
    next(stream)
    holder = [stream]
    job_id = stream.job_id
    del stream

    def drop():
        holder.pop().close()
        gc.collect()
        return fleet.generate("Hello", seed=7, max_tokens=2).text()

    assert in_forked_child(drop) == "zF"
    assert goes_on(jobs, job_id)
    close(holder.pop())
    assert is_cancelled(jobs, job_id)


def test_what_left_last_is_told_when_the_client_is_closed(null_stack, jobs):
    with FleetClient(redis_url=null_stack.redis_url) as fleet:
        stream = fleet.generate("Hello", max_tokens=MANY)
        next(stream)
        stream.close()
    assert is_cancelled(jobs, stream.job_id, 5)


def test_one_that_leaves_a_thread_may_come_back_for_a_while(fleet, jobs):
    stream = fleet.generate("Hello", max_tokens=MANY)
    next(stream)
    stream.close(after_s=0.5)
    back = fleet.attach(stream.job_id)
    assert goes_on(jobs, stream.job_id, 1.5)
    back.close(after_s=0.5)
    assert is_cancelled(jobs, stream.job_id)


async def aclose(stream):
    await anext(stream)
    await stream.close()


async def leave_the_async_block(stream):
    async with stream:
        await anext(stream)


async def close_as_contextlib_does(stream):
    async with contextlib.aclosing(stream):
        await anext(stream)


async def run_into_a_timeout(stream):
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            async for _chunk in stream:
                pass


async def cancel_the_task(stream):
    begun = asyncio.Event()

    async def read(stream):
        async for _chunk in stream:
            begun.set()

    task = asyncio.create_task(read(stream))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])


async def abandon_a_generator(stream):
    async def texts(stream):
        async for chunk in stream:
            yield chunk.text

    async def read(generator):
        async for _text in generator:
            return

    await read(texts(stream))


ASYNC_WAYS = [
    aclose, leave_the_async_block, close_as_contextlib_does, run_into_a_timeout, cancel_the_task,
    abandon_a_generator,
]  # fmt: skip


@pytest.mark.parametrize("leave", ASYNC_WAYS, ids=lambda way: way.__name__)
async def test_a_running_job_ends_with_its_async_reader(afleet, jobs, leave):
    stream = await afleet.generate("Hello", max_tokens=MANY)
    job_id = stream.job_id
    await leave(stream)
    del stream
    gc.collect()
    assert await asyncio.to_thread(is_cancelled, jobs, job_id)


@pytest.mark.parametrize("options", [{"detached": True}, {"lane": "batch"}], ids=str)
async def test_not_one_that_needs_no_async_reader(afleet, jobs, options):
    stream = await afleet.generate("Hello", max_tokens=MANY, **options)
    await aclose(stream)
    assert await asyncio.to_thread(goes_on, jobs, stream.job_id)
    await afleet.cancel(stream.job_id)


async def test_not_after_the_async_callers_timeout(afleet, jobs, ghost):
    stream = await afleet.generate("Hello", model=ghost, idle_timeout=0.1)
    with pytest.raises(StreamTimeout):
        await anext(stream)
    await stream.close()
    await asyncio.sleep(1)
    assert state(jobs, stream.job_id) is JobState.QUEUED


async def test_one_that_leaves_may_come_back_for_a_while(afleet, jobs):
    stream = await afleet.generate("Hello", max_tokens=MANY)
    await anext(stream)
    await stream.close(after_s=0.5)
    back = await afleet.attach(stream.job_id)
    await asyncio.sleep(1.5)
    assert state(jobs, stream.job_id) is JobState.RUNNING
    await back.close(after_s=0.5)
    assert await asyncio.to_thread(is_cancelled, jobs, stream.job_id)
