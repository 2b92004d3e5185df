"""AsyncSubscriber: one pub/sub connection for all streams of a client, read by a task."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis

from pagefleet.api.client.backoff import Backoff
from pagefleet.api.client.events import Deliver
from pagefleet.api.client.routes import (
    BEAT_EVERY_S,
    RECONNECT_BASE_S,
    RECONNECT_CAP_S,
    SUBSCRIBER_FAILED,
    Routes,
)
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.protocol.connection import connect_async, redis_errors

logger = logging.getLogger(__name__)

_CANCEL_AGAIN_S: Final = 0.1
_POLL_S: Final = 1.0


async def _nothing_to_report() -> bool:
    return True


class AsyncSubscriber:
    """Listens to the client's reply channel and to the channels of the jobs that its streams are attached to.
    After a lost connection it connects again and lets every stream read its log.

    An unexpected error is logged, and the task listens again: without it no stream would receive events.

    Args:
        channel: the reply channel.
        beat: renews the client's lease. Called every few seconds; fails if the server does.
        report: reports abandoned jobs to the server. Called after each heartbeat and after
            :meth:`report_soon`. It returns False if the server was unavailable.
    """

    def __init__(
        self,
        settings: FleetSettings,
        channel: str,
        beat: Callable[[], Awaitable[None]],
        report: Callable[[], Awaitable[bool]] = _nothing_to_report,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._beat = beat
        self._report = report
        self.routes = Routes()
        self._watched: Counter[str] = Counter()
        self._pubsub: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unfinished: set[asyncio.Future[Any]] = set()
        self._reporting: asyncio.Future[bool] | None = None
        self._ready = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Return after the server has confirmed the subscription.

        Raises:
            RedisUnavailable: within the connect timeout.
        """
        client: Any = connect_async(self._settings)
        try:
            with redis_errors(self._settings.url):
                await client.ping()
        except BaseException:
            await client.aclose()
            raise
        self._failure = None
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(client), name="pagefleet-subscriber")
        try:
            await asyncio.wait_for(self._ready.wait(), self._settings.connect_timeout_s)
        except TimeoutError:
            await self.close()
            raise self._failure or RedisUnavailable(
                f"Redis did not confirm a subscription within {self._settings.connect_timeout_s:g} s."
            ) from None
        except BaseException:
            # The caller was cancelled: the next call of open() starts another task.
            await self.close()
            raise

    async def close(self) -> None:
        self._loop = None
        task = self._task
        while task is not None and not task.done():
            # Repeatedly: redis-py swallows a cancel that arrives at the end of one of its timeouts.
            task.cancel()
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        self._task = None
        self._ready.clear()
        if self._unfinished:
            await asyncio.wait(self._unfinished)

    def stop_with(self, owner: object) -> None:
        """An asynchronous client must be closed: nothing happens when ``owner`` is garbage collected."""

    async def watch(self, job_id: str, deliver: Deliver) -> None:
        """Listen to a job's own channel. The first of several readers subscribes.

        After the server has confirmed it, the readers read the log: from then on they miss nothing. If the
        server is unavailable, this happens when it is back.
        """
        self.routes.add(job_id, deliver)
        self._watched[job_id] += 1
        if self._watched[job_id] == 1:
            await self._command("subscribe", job_id)

    def unwatch(self, job_id: str, deliver: Deliver) -> None:
        """Called in any thread: a finalizer closes a stream that its caller has dropped."""
        self.routes.remove(job_id, deliver)
        # Only the loop's thread changes the count; without a loop, no other thread does.
        if not self._call_soon(self._remove_watch, job_id):
            self._remove_watch(job_id)

    def report_soon(self) -> None:
        """Called in any thread."""
        self._call_soon(self._start_report)

    def _remove_watch(self, job_id: str) -> None:
        self._watched[job_id] -= 1
        if self._watched[job_id] <= 0:
            del self._watched[job_id]
            if self._loop is not None:
                self._start(self._unsubscribe, job_id)

    def _call_soon(self, call: Callable[..., Any], *args: Any) -> bool:
        """Call in the loop's thread. Return False if there is no loop."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        loop.call_soon_threadsafe(call, *args)
        return True

    def _start(self, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(work(*args))
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    def _start_report(self) -> None:
        """Reports in a task, since events must not wait for it."""
        if self._ready.is_set() and (self._reporting is None or self._reporting.done()):
            self._reporting = self._start(self._report)

    async def _unsubscribe(self, job_id: str) -> None:
        # A new reader may have come.
        if job_id not in self._watched:
            await self._command("unsubscribe", job_id)

    async def _command(self, verb: str, job_id: str) -> None:
        if self._pubsub is not None:
            # redis-py fails with an AttributeError if the listening task drops the connection meanwhile. That
            # task subscribes again.
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, OSError, AttributeError):
                await getattr(self._pubsub, verb)(keys.job_channel(job_id))

    async def _run(self, client: Any) -> None:
        backoff = Backoff(RECONNECT_BASE_S, RECONNECT_CAP_S)
        try:
            while True:
                try:
                    with redis_errors(self._settings.url):
                        await self._listen(client)
                except Exception as error:
                    if not isinstance(error, RedisUnavailable):
                        logger.exception(SUBSCRIBER_FAILED)
                    self._failure = error
                    if self._ready.is_set():
                        backoff.reset()
                    self._ready.clear()
                    await asyncio.sleep(backoff.next_s())
        finally:
            await client.aclose()

    async def _listen(self, client: Any) -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(self._channel, *map(keys.job_channel, self._watched))
            self._pubsub = pubsub
            try:
                await self._read(pubsub)
            finally:
                self._pubsub = None

    async def _read(self, pubsub: Any) -> None:
        beat_at = 0.0
        while True:
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + BEAT_EVERY_S
                await self._beat()
                self._start_report()
            message = await pubsub.get_message(timeout=_POLL_S)
            if message is None:
                continue
            if message["type"] == "message":
                self.routes.dispatch(message["data"])
            elif message["type"] == "subscribe" and message["channel"] == self._channel:
                self._ready.set()
                self.routes.resync()
            elif message["type"] == "subscribe":
                self.routes.resync_job(keys.job_of_channel(message["channel"]))
