"""One pub/sub connection for all streams of a client process: reconnects, resubscribes, routes by job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis

from pagefleet.api.client.token_stream import LiveEvent, Resync
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.contract.messages import split_events
from pagefleet.api.protocol.connection import connect, connect_async, redis_errors

Deliver = Callable[[LiveEvent | Resync], None]

logger = logging.getLogger(__name__)

BEAT_EVERY_S: Final = 2.5
"""A quarter of a client's lease."""
_CANCEL_AGAIN_S: Final = 0.1
_POLL_S: Final = 1.0
_DEPARTURES_EVERY_S: Final = 0.25
_FAILED: Final = "the subscriber failed; until it listens again, streams read their jobs' logs"
_MAX_BACKOFF_S: Final = 2.0


class _Routes:
    """Who wants to hear of which job."""

    def __init__(self) -> None:
        # Tuples, replaced and never changed: the listening thread reads them while others add and remove.
        # No lock, which a fork could leave held in the child: two threads that add the same job at the same
        # moment may lose one route, whose stream then lives off the log.
        self._deliver: dict[str, tuple[Deliver, ...]] = {}

    def add(self, job_id: str, deliver: Deliver) -> None:
        """Several streams of one process may read the same job: each hears of it."""
        there = self._deliver.get(job_id, ())
        if deliver not in there:
            self._deliver[job_id] = (*there, deliver)

    def remove(self, job_id: str, deliver: Deliver) -> None:
        left = tuple(each for each in self._deliver.get(job_id, ()) if each != deliver)
        if left:
            self._deliver[job_id] = left
        else:
            self._deliver.pop(job_id, None)

    def dispatch(self, payload: str) -> None:
        for job_id, kind, body in split_events(payload):
            for deliver in self._deliver.get(job_id, ()):
                deliver(LiveEvent(kind, body))

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._deliver

    def resync(self) -> None:
        for job_id in list(self._deliver):
            self.resync_job(job_id)

    def resync_job(self, job_id: str) -> None:
        for deliver in self._deliver.get(job_id, ()):
            deliver(Resync())


class Subscriber:
    """Listens in a daemon thread; :meth:`open` returns once the server confirmed the subscription.

    An unexpected error is logged and the thread listens anew: a reader without it would hear nothing more.

    Args:
        beat: tells the server that this client lives; called every few seconds, may fail with the server.
        settle: tells the server which jobs have lost their readers; called more often, may fail with it.
        wake: makes :meth:`close` quick: publishes something to the channel.
    """

    def __init__(
        self,
        settings: FleetSettings,
        channel: str,
        beat: Callable[[], None],
        settle: Callable[[], None] = lambda: None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._beat = beat
        self._settle = settle
        self._wake = wake
        self._routes = _Routes()
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="pagefleet-subscriber")
        self.add = self._routes.add
        self.remove = self._routes.remove

    def open(self) -> None:
        """Raises: RedisUnavailable, within the connect timeout; what else the thread failed with."""
        self._thread.start()
        deadline = time.monotonic() + 2 * self._settings.connect_timeout_s
        while not self._ready.wait(0.02):
            if self._failure is not None or time.monotonic() > deadline:
                self.stop()
                raise self._failure or RedisUnavailable(
                    f"Redis did not confirm a subscription within {self._settings.connect_timeout_s:g} s."
                )

    def stop(self) -> None:
        """Ends the thread soon; returns at once."""
        self._closed.set()

    def close(self) -> None:
        """Returns when the thread has ended: only then may what it uses be closed."""
        self.stop()
        if self._ready.is_set():
            self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        backoff_s = 0.05
        client: Any = connect(self._settings)
        while not self._closed.is_set():
            try:
                with redis_errors(self._settings.url):
                    self._listen(client)
            except Exception as error:
                if not isinstance(error, RedisUnavailable):
                    logger.exception(_FAILED)
                self._failure = error
                backoff_s = 0.05 if self._ready.is_set() else min(2 * backoff_s, _MAX_BACKOFF_S)
                self._ready.clear()
                self._closed.wait(backoff_s)
        client.close()

    def _listen(self, client: Any) -> None:
        with contextlib.closing(client.pubsub()) as pubsub:
            pubsub.subscribe(self._channel)
            beat_at = 0.0
            while not self._closed.is_set():
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + BEAT_EVERY_S
                    self._beat()
                self._settle()
                message = pubsub.get_message(timeout=_DEPARTURES_EVERY_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self._ready.set()
                    self._routes.resync()
                elif message["type"] == "message":
                    self._routes.dispatch(message["data"])
            # What left with the client itself.
            self._settle()


class AsyncSubscriber:
    """:class:`Subscriber` as a task of the running event loop.

    It listens, on the same connection, to the own channels of jobs that this client did not submit too.
    """

    def __init__(self, settings: FleetSettings, channel: str, beat: Callable[[], Awaitable[None]]) -> None:
        self._settings = settings
        self._channel = channel
        self._beat = beat
        self._routes = _Routes()
        self._watched: Counter[str] = Counter()
        self._pubsub: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: set[asyncio.Future[None]] = set()
        self._ready = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self.add = self._routes.add
        self.remove = self._routes.remove

    async def open(self) -> None:
        """Raises: RedisUnavailable, within the connect timeout."""
        client: Any = connect_async(self._settings)
        try:
            with redis_errors(self._settings.url):
                await client.ping()
        except BaseException:
            await client.aclose()
            raise
        self._failure = None
        self._task = asyncio.create_task(self._run(client), name="pagefleet-subscriber")
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.connect_timeout_s)
        except TimeoutError:
            await self.close()
            raise self._failure or RedisUnavailable(
                f"Redis did not confirm a subscription within {self._settings.connect_timeout_s:g} s."
            ) from None

    async def close(self) -> None:
        task, self._task = self._task, None
        while task is not None and not task.done():
            # Again and again: a cancel that meets the end of a timeout in redis-py is swallowed there.
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        self._ready.clear()
        if self._leaving:
            await asyncio.wait(self._leaving)

    def hears(self, job_id: str) -> bool:
        """Whether somebody in this process listens to it."""
        return job_id in self._routes

    async def watch(self, job_id: str, deliver: Deliver) -> None:
        """Listens to a job's own channel from now on, for as many readers as ask for it.

        They are told to look into the log once the server has confirmed: from then on nothing is missed.
        Where it cannot be asked now, it is when it is back.
        """
        self._routes.add(job_id, deliver)
        self._loop = asyncio.get_running_loop()
        self._watched[job_id] += 1
        if self._watched[job_id] == 1:
            await self._ask("subscribe", job_id)

    def unwatch(self, job_id: str, deliver: Deliver) -> None:
        """Also for a reader that was dropped half way, wherever that is noticed."""
        self._routes.remove(job_id, deliver)
        self._watched[job_id] -= 1
        if self._watched[job_id] <= 0:
            del self._watched[job_id]
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._let_go, job_id)

    def _let_go(self, job_id: str) -> None:
        task = asyncio.ensure_future(self._unsubscribe(job_id))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _unsubscribe(self, job_id: str) -> None:
        # Somebody may have come meanwhile.
        if job_id not in self._watched:
            await self._ask("unsubscribe", job_id)

    async def _ask(self, verb: str, job_id: str) -> None:
        if self._pubsub is not None:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, OSError):
                await getattr(self._pubsub, verb)(keys.job_channel(job_id))

    async def _run(self, client: Any) -> None:
        backoff_s = 0.05
        try:
            while True:
                try:
                    with redis_errors(self._settings.url):
                        await self._listen(client)
                except Exception as error:
                    if not isinstance(error, RedisUnavailable):
                        logger.exception(_FAILED)
                    self._failure = error
                    backoff_s = 0.05 if self._ready.is_set() else min(2 * backoff_s, _MAX_BACKOFF_S)
                    self._ready.clear()
                    await asyncio.sleep(backoff_s)
        finally:
            await client.aclose()

    async def _listen(self, client: Any) -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel, *map(keys.job_channel, self._watched))
            self._pubsub = pubsub
            try:
                await self._hear(pubsub)
            finally:
                self._pubsub = None

    async def _hear(self, pubsub: Any) -> None:
        beat_at = 0.0
        while True:
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + BEAT_EVERY_S
                await self._beat()
            message = await pubsub.get_message(timeout=_POLL_S)
            if message is None:
                continue
            if message["type"] == "message":
                self._routes.dispatch(message["data"])
            elif message["type"] == "subscribe" and message["channel"] == self._channel:
                self._ready.set()
                self._routes.resync()
            elif message["type"] == "subscribe":
                self._routes.resync_job(keys.job_of_channel(message["channel"]))
