"""Where an asynchronous stream's events come from: the client's reply channel, or an attached job's own."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from typing import Final

from pagefleet.api import operations
from pagefleet.api.arguments import shown_request
from pagefleet.api.async_connections import AsyncConnections
from pagefleet.api.connections import send_message
from pagefleet.api.errors import JobNotFound, RedisUnavailable
from pagefleet.api.fleet import Prepared, check_depth
from pagefleet.api.job_record import JobRecord
from pagefleet.api.last_seen import RESUBMIT_AFTER_S, LastSeen
from pagefleet.api.token_stream import AsyncSource, LiveEvent, Resync


class AsyncOwnSource(AsyncSource):
    """A job that this client submitted: events come over the client's reply channel."""

    def __init__(self, live: AsyncConnections, prepared: Prepared) -> None:
        self._live = live
        self._prepared = prepared
        self._inbox = _Inbox()
        self._seen = LastSeen(live.store.settings.result_ttl_s)
        self._deliver = self._seen.on_the_way_to(self._inbox.put)
        self._stop_listening: weakref.finalize[..., AsyncOwnSource] | None = None

    async def submit(self) -> bool:
        """SUBMIT and ENQUEUE. False where the id existed already."""
        prepared, live = self._prepared, self._live
        self._listen()
        try:
            submitted = await live.store.run(
                operations.submit(
                    prepared.job_id,
                    prepared.request,
                    queue=prepared.queue,
                    channel=live.channel,
                    limits=prepared.limits,
                    client_id=live.client_id,
                    charge=prepared.charge,
                )
            )
            check_depth(submitted, prepared)
            if submitted.created:
                await self._enqueue()
        except BaseException:
            await self.close()
            raise
        return submitted.created

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return await self._inbox.get(timeout_s)

    async def read(self) -> JobRecord | None:
        record = await self._live.store.read(self._prepared.job_id)
        self._seen.read(record)
        return record

    async def resubmit(self) -> bool:
        # What was said of it at last may still be on its way.
        await asyncio.sleep(RESUBMIT_AFTER_S)
        if not self._seen.was_lost:
            return False
        await self.submit()
        return True

    async def expire(self) -> None:
        await self._live.expire(self._prepared.job_id)

    async def cancel(self) -> None:
        await self._live.cancel(self._prepared.job_id)

    async def delete(self) -> None:
        await self._live.delete(self._prepared.job_id)

    async def close(self) -> None:
        self._inbox.close()
        if self._stop_listening is not None:
            self._stop_listening()

    def _listen(self) -> None:
        routes = self._live.subscriber
        routes.add(self._prepared.job_id, self._deliver)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, routes.remove, self._prepared.job_id, self._deliver)

    async def _enqueue(self) -> None:
        prepared = self._prepared
        try:
            await asyncio.to_thread(
                send_message,
                self._live.app,
                prepared.job_id,
                prepared.queue,
                prepared.request.priority,
                shown=shown_request(prepared.request, self._live.store.settings.prompt_chars),
            )
        except RedisUnavailable:
            with contextlib.suppress(RedisUnavailable, JobNotFound):
                await self._live.delete(prepared.job_id)
            raise


_MAX_UNREAD: Final = 1024
"""Events. A reader that is slower than its job lives off the log."""


class _Inbox:
    """Events for one reader, within one event loop.

    It does not grow with a reader that does not read: what is too much is dropped, and the reader told to
    look into the log, which has it all.

    A queue with ``asyncio.timeout`` around it costs several times as much, once for each token; a timer that
    is made and cancelled for each token still costs as much as the rest. One timer goes on until it rings.
    """

    def __init__(self) -> None:
        self._events: deque[LiveEvent | Resync] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._give_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: LiveEvent | Resync) -> None:
        if len(self._events) >= _MAX_UNREAD:
            self._events.clear()
            event = Resync()
        self._events.append(event)
        self._wake()

    async def get(self, timeout_s: float) -> LiveEvent | Resync | None:
        """The next event, None after ``timeout_s`` without one."""
        if not self._events:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._give_up_at = loop.time() + timeout_s
            self._ring_at(loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Nothing more will come: who waits is told at once."""
        self._stop_timer()
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_at(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may ring earlier than the reader's patience ends, never later."""
        if self._timer is not None and self._timer.when() <= self._give_up_at:
            return
        self._stop_timer()
        self._timer = loop.call_at(self._give_up_at, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if loop.time() >= self._give_up_at:
            self._wake()
        else:
            self._ring_at(loop)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncAttachedSource(AsyncSource):
    """A job of anybody's: events come over the job's own channel, on the connection of all this client's
    streams."""

    def __init__(self, live: AsyncConnections, job_id: str) -> None:
        self._live = live
        self._job_id = job_id
        self._inbox = _Inbox()
        self._stop_listening: weakref.finalize[..., AsyncAttachedSource] | None = None

    async def open(self) -> None:
        subscriber = self._live.subscriber
        await subscriber.watch(self._job_id, self._inbox.put)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, subscriber.unwatch, self._job_id, self._inbox.put)

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return await self._inbox.get(timeout_s)

    async def read(self) -> JobRecord | None:
        return await self._live.store.read(self._job_id)

    async def resubmit(self) -> bool:
        return False

    async def expire(self) -> None:
        await self._live.expire(self._job_id)

    async def cancel(self) -> None:
        await self._live.cancel(self._job_id)

    async def delete(self) -> None:
        await self._live.delete(self._job_id)

    async def close(self) -> None:
        self._inbox.close()
        if self._stop_listening is not None:
            self._stop_listening()
