"""A subscriber whose thread or task meets an error that nobody expected: it says so, and listens on."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from pagefleet.api.client.asynchronous.subscriber import AsyncSubscriber
from pagefleet.api.client.events import LiveEvent
from pagefleet.api.client.routes import Routes
from pagefleet.api.client.synchronous.subscriber import Subscriber
from pagefleet.workers.threads.polling import wait_until

CHANNEL = "pf:reply:test"
NAME = "pagefleet-subscriber"


class Beat:
    """Fails once, with what no server's absence raises."""

    def __init__(self, *fails_at):
        self.num_beats = 0
        self._fails_at = fails_at

    def __call__(self):
        self.num_beats += 1
        if self.num_beats in self._fails_at:
            raise AttributeError("nobody expected this")

    async def awaited(self):
        self()


@pytest.fixture(autouse=True)
def beats_often(monkeypatch):
    for kind in ("asynchronous", "synchronous"):
        monkeypatch.setattr(f"pagefleet.api.client.{kind}.subscriber.BEAT_EVERY_S", 0.0)


def reports(caplog):
    return [record for record in caplog.records if record.exc_info and record.levelname == "ERROR"]


def test_a_thread(store, caplog):
    # It must not fail before open() returns, which would pass the error on.
    beat, heard = Beat(), []
    subscriber = Subscriber(store.settings, CHANNEL, beat)
    subscriber.routes.add("a", heard.append)
    subscriber.open()
    beat._fails_at = range(beat.num_beats + 1, 1_000_000)
    try:
        assert wait_until(lambda: reports(caplog), 60)
        beat._fails_at, num_failed = (), beat.num_beats
        assert wait_until(lambda: beat.num_beats > num_failed + 1 and subscriber._ready.is_set(), 60)
        store.redis.publish(CHANNEL, "a t {}")
        assert wait_until(lambda: LiveEvent("t", "{}") in heard, 60)
    finally:
        subscriber.close()
    assert all("nobody expected this" in report.exc_text for report in reports(caplog))


async def test_a_task(store, caplog):
    beat, heard = Beat(2), []
    subscriber = AsyncSubscriber(store.settings, CHANNEL, beat.awaited)
    subscriber.routes.add("a", heard.append)
    await subscriber.open()
    try:
        async with asyncio.timeout(10):
            while beat.num_beats <= 2 or not subscriber._ready.is_set():
                await asyncio.sleep(0.01)
            store.redis.publish(CHANNEL, "a t {}")
            while LiveEvent("t", "{}") not in heard:
                await asyncio.sleep(0.01)
    finally:
        await subscriber.close()
    (report,) = reports(caplog)
    assert "nobody expected this" in report.exc_text


def test_one_that_cannot_begin_says_why(store):
    subscriber = Subscriber(store.settings, CHANNEL, Beat(1, *range(1, 1000)))
    with pytest.raises(AttributeError, match="nobody expected this"):
        subscriber.open()
    subscriber.close()
    assert subscriber._thread not in threading.enumerate()


def test_one_that_is_closed_uses_nothing_any_more(store):
    """What it beats on may be closed as soon as ``close`` has returned."""
    beat = Beat()
    subscriber = Subscriber(store.settings, CHANNEL, beat)
    subscriber.open()
    subscriber.close()
    num_beats = beat.num_beats
    assert subscriber._thread not in threading.enumerate()
    assert beat.num_beats == num_beats


def test_one_that_is_closed_lets_a_thread_finish_its_command(store):
    subscriber = Subscriber(store.settings, CHANNEL, Beat())
    subscriber.open()
    pool = subscriber._client.connection_pool
    get, used = pool.get_connection, []

    def in_use_until_the_thread_has_ended(*args, **options):
        connection = get(*args, **options)
        subscriber._thread.join(60)
        used.append(connection._sock is not None)
        return connection

    pool.get_connection = in_use_until_the_thread_has_ended
    subscriber.close()
    assert used == [True]
    assert subscriber._thread not in threading.enumerate()


def test_one_whose_start_is_interrupted_ends_its_thread(store, monkeypatch):
    subscriber = Subscriber(store.settings, CHANNEL, Beat())

    def interrupt(event, timeout_s=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupt)
        patch.setattr(threading.Thread, "start", lambda thread: None)
        with pytest.raises(KeyboardInterrupt):
            subscriber.open()
    assert subscriber._closed.is_set()


async def test_one_whose_start_is_cancelled_ends_its_task(store):
    subscriber = AsyncSubscriber(store.settings, CHANNEL, Beat().awaited)
    opening = asyncio.create_task(subscriber.open())
    async with asyncio.timeout(10):
        while not (tasks := [task for task in asyncio.all_tasks() if task.get_name() == NAME]):
            await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert tasks[0].done()


def test_routes_that_threads_add_and_remove_at_once():
    routes, start = Routes(), threading.Barrier(4)

    def work():
        deliver = [].append
        start.wait()
        for _ in range(10_000):
            routes.add("a", deliver)
            routes.remove("a", deliver)

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert "a" not in routes


async def test_a_connection_that_is_dropped_during_a_subscribe_fails_no_attach(store, monkeypatch):
    subscriber = AsyncSubscriber(store.settings, CHANNEL, Beat().awaited)
    await subscriber.open()

    async def dropped(*channels):
        raise AttributeError("'NoneType' object has no attribute 'writelines'")

    try:
        monkeypatch.setattr(subscriber._pubsub, "subscribe", dropped)
        await subscriber.watch("a", [].append)
        assert "a" in subscriber.routes
    finally:
        await subscriber.close()
