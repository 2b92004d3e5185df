"""AsyncFleetClient: :class:`~pagefleet.api.client.FleetClient` for asyncio, on ``redis.asyncio``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from pagefleet.api import keys, operations
from pagefleet.api.async_job_store import AsyncJobStore
from pagefleet.api.celery_app import make_celery
from pagefleet.api.closing import JobCloser
from pagefleet.api.connection import connect_async, redis_errors
from pagefleet.api.connections import CardCache, job_not_found, send_message
from pagefleet.api.errors import JobNotFound, RedisUnavailable
from pagefleet.api.fleet import (
    DEFAULT_TIMEOUT_S,
    FleetStatus,
    Prepared,
    as_list,
    as_messages,
    check_depth,
    prepare,
)
from pagefleet.api.job_record import JobRecord
from pagefleet.api.job_store import JobStore
from pagefleet.api.keys import Lane
from pagefleet.api.messages import MAX_SEED, ModelCard, SamplingOptions, split_events
from pagefleet.api.model_cards import CardIndex
from pagefleet.api.operations import CancelVerdict
from pagefleet.api.settings import FleetSettings
from pagefleet.api.status import read_status
from pagefleet.api.stream import StreamState
from pagefleet.api.subscriber import AsyncSubscriber
from pagefleet.api.token_stream import AsyncSource, AsyncTokenStream, LiveEvent, Resync


class AsyncFleetClient:
    """The fleet behind one Redis server, for one event loop. Same calls, same errors as ``FleetClient``.

    Use as ``async with AsyncFleetClient() as fleet``, or call :meth:`close` yourself.
    """

    def __init__(self, settings: FleetSettings | None = None, *, redis_url: str | None = None) -> None:
        self.settings = settings or FleetSettings.load(redis_url=redis_url)
        self._store = AsyncJobStore(self.settings)
        # Celery's publisher and result backend are synchronous: both run in a thread.
        self._sync_store = JobStore(self.settings)
        self._app = make_celery(self.settings)
        self._cards = CardCache(self.settings.card_ttl_s)
        self._closer = JobCloser(self._sync_store, self._app)
        self._client_id = uuid.uuid4().hex
        self._channel = keys.reply_channel(self._client_id)
        self._subscriber = AsyncSubscriber(self.settings, self._channel, self._beat)
        self._opening = asyncio.Lock()
        self._is_open = False

    async def generate(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.generate`."""
        fields = {
            "prompt": prompt,
            "prompt_token_ids": as_list(prompt_token_ids),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            **sampling,
        }
        return await self._start(job_id, fields, timeout)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.chat`."""
        fields = {
            "messages": as_messages(messages),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            **sampling,
        }
        return await self._start(job_id, fields, timeout)

    async def attach(
        self,
        job_id: str,
        *,
        after: int = 0,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.attach`."""
        await self._open()
        if not await self._store.run(operations.watch(job_id, self._client_id)):
            raise job_not_found(job_id)
        source = _AsyncAttachedSource(self, job_id)
        await source.open()
        record = await self._store.read(job_id)
        if record is None:
            await source.close()
            raise job_not_found(job_id)
        state = StreamState(job_id, after=after)
        state.feed_record(record)
        return AsyncTokenStream(state, source, record.model, timeout)

    async def cancel(self, job_id: str) -> bool:
        """See :meth:`pagefleet.api.fleet.Fleet.cancel`."""
        verdict = await self._store.run(operations.cancel(job_id))
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            await asyncio.to_thread(self._closer.close, job_id)
        return verdict is not CancelVerdict.FINAL

    async def delete(self, job_id: str) -> None:
        """See :meth:`pagefleet.api.fleet.Fleet.delete`."""
        if not await asyncio.to_thread(self._closer.delete, job_id):
            raise job_not_found(job_id)

    async def models(self) -> list[ModelCard]:
        return await self._store.cards()

    async def status(self) -> FleetStatus:
        return await asyncio.to_thread(read_status, self._sync_store)

    async def close(self) -> None:
        await self._subscriber.close()
        await self._store.close_connections()
        self._sync_store.close_connections()
        self._app.close()
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _beat(self) -> None:
        await self._store.beat_client(self._client_id)

    async def _expire(self, job_id: str) -> None:
        if await self._store.run(operations.expire(job_id)):
            await asyncio.to_thread(self._closer.close, job_id)

    async def _open(self) -> None:
        async with self._opening:
            if not self._is_open:
                await self._subscriber.open()
                self._is_open = True

    async def _start(
        self, job_id: str | None, fields: Mapping[str, Any], timeout_s: float | None
    ) -> AsyncTokenStream:
        await self._open()
        model = fields.get("model")
        index = await self._index(model if isinstance(model, str) else None)
        prepared = prepare(
            index, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes
        )
        source = _AsyncOwnSource(self, prepared)
        if not await source.submit():
            await source.close()
            return await self.attach(prepared.job_id, timeout=timeout_s)
        return AsyncTokenStream(StreamState(prepared.job_id), source, prepared.card.name, timeout_s)

    async def _index(self, name: str | None) -> CardIndex:
        index = self._cards.knows(name)
        if index is None:
            # A burst of first requests asks the server once.
            async with self._opening:
                index = self._cards.knows(name) or self._cards.put(await self._store.cards())
        return index


class _AsyncOwnSource(AsyncSource):
    """A job that this client submitted: events come over the client's reply channel."""

    def __init__(self, client: AsyncFleetClient, prepared: Prepared) -> None:
        self._client = client
        self._prepared = prepared
        self._inbox = _Inbox()
        self._submitted_at = 0.0
        self._stop_listening: weakref.finalize[..., _AsyncOwnSource] | None = None

    async def submit(self) -> bool:
        """SUBMIT and ENQUEUE. False where the id existed already."""
        prepared, client = self._prepared, self._client
        self._listen()
        self._submitted_at = time.monotonic()
        try:
            submitted = await client._store.run(
                operations.submit(
                    prepared.job_id,
                    prepared.request,
                    queue=prepared.queue,
                    channel=client._channel,
                    limits=prepared.limits,
                    client_id=client._client_id,
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
        return await self._client._store.read(self._prepared.job_id)

    async def resubmit(self) -> bool:
        if time.monotonic() - self._submitted_at > self._client.settings.result_ttl_s:
            return False
        await self.submit()
        return True

    async def expire(self) -> None:
        await self._client._expire(self._prepared.job_id)

    async def cancel(self) -> None:
        await self._client.cancel(self._prepared.job_id)

    async def delete(self) -> None:
        await self._client.delete(self._prepared.job_id)

    async def close(self) -> None:
        self._inbox.close()
        if self._stop_listening is not None:
            self._stop_listening()

    def _listen(self) -> None:
        routes = self._client._subscriber
        routes.add(self._prepared.job_id, self._inbox.put)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, routes.remove, self._prepared.job_id, self._inbox.put)

    async def _enqueue(self) -> None:
        prepared = self._prepared
        try:
            await asyncio.to_thread(
                send_message, self._client._app, prepared.job_id, prepared.queue, prepared.request.priority
            )
        except RedisUnavailable:
            with contextlib.suppress(RedisUnavailable, JobNotFound):
                await self._client.delete(prepared.job_id)
            raise


class _Inbox:
    """Events for one reader, within one event loop.

    A queue with ``asyncio.timeout`` around it costs several times as much, once for each token; a timer that
    is made and cancelled for each token still costs as much as the rest. One timer goes on until it rings.
    """

    def __init__(self) -> None:
        self._events: deque[LiveEvent | Resync] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._give_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def put(self, event: LiveEvent | Resync) -> None:
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring_at(self, loop: asyncio.AbstractEventLoop) -> None:
        """The timer may ring earlier than the reader's patience ends, never later."""
        if self._timer is not None and self._timer.when() <= self._give_up_at:
            return
        self.close()
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


class _AsyncAttachedSource(AsyncSource):
    """A job of anybody's: events come over the job's own channel, on a connection of this reader's."""

    def __init__(self, client: AsyncFleetClient, job_id: str) -> None:
        self._client = client
        self._job_id = job_id
        self._redis: Any = connect_async(client.settings)
        self._pubsub: Any = self._redis.pubsub()
        self._lines: list[LiveEvent] = []

    async def open(self) -> None:
        with redis_errors(self._client.settings.url):
            await self._pubsub.subscribe(keys.job_channel(self._job_id))

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        if self._lines:
            return self._lines.pop(0)
        try:
            with redis_errors(self._client.settings.url):
                message = await self._pubsub.get_message(timeout=timeout_s)
        except RedisUnavailable:
            return Resync()
        if message is None:
            return None
        if message["type"] != "message":
            return Resync()
        self._lines = [LiveEvent(kind, body) for _id, kind, body in split_events(message["data"])]
        return self._lines.pop(0)

    async def read(self) -> JobRecord | None:
        return await self._client._store.read(self._job_id)

    async def resubmit(self) -> bool:
        return False

    async def expire(self) -> None:
        await self._client._expire(self._job_id)

    async def cancel(self) -> None:
        await self._client.cancel(self._job_id)

    async def delete(self) -> None:
        await self._client.delete(self._job_id)

    async def close(self) -> None:
        await self._pubsub.aclose()
        await self._redis.aclose()
