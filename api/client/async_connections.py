"""Everything that one asynchronous client holds open."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.client.async_questions import AsyncQuestions
from pagefleet.api.client.connections import CardCache
from pagefleet.api.client.readers import Departure, Readers
from pagefleet.api.client.subscriber import AsyncSubscriber
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operations import CancelVerdict

T = TypeVar("T")

logger = logging.getLogger(__name__)


class AsyncConnections:
    """:class:`~pagefleet.api.client.connections.Connections` for one event loop.

    Celery's publisher and result backend are synchronous: what needs them runs in a thread.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self.store = AsyncJobStore(settings)
        self.sync_store = JobStore(settings)
        self.questions = AsyncQuestions(self.store)
        self.app = make_celery(settings)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        self.readers = Readers(self._wake)
        self.subscriber = AsyncSubscriber(settings, self.channel, self._beat)
        self._closer = JobCloser(self.sync_store, self.app)
        self._cards = CardCache(settings.card_ttl_s)
        self._opening = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._settling: asyncio.Task[None] | None = None
        self._unfinished: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Raises: RedisUnavailable, within the connect timeout."""
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                self._loop = asyncio.get_running_loop()
                await self.subscriber.open()
                self._is_open = True

    async def close(self) -> None:
        """Waits for what still runs in threads and beside its callers: it uses the connections."""
        await self.subscriber.close()
        self._loop, is_open, self._is_open = None, self._is_open, False
        while self._unfinished:
            await asyncio.wait(self._unfinished)
        if is_open:
            await self._settle()
        await self.questions.close()
        await self.store.close_connections()
        self.sync_store.close_connections()
        self.app.close()

    async def in_thread(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """What ``call`` returns. It runs to its end although its caller is cancelled, and :meth:`close` waits
        for it."""
        return await asyncio.shield(self.to_the_end(asyncio.to_thread(call, *args, **options)))

    def to_the_end(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """As a task that :meth:`close` waits for. An error is logged where nobody else is told of it."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    async def index(self, name: str | None) -> CardIndex:
        index = self._cards.knows(name)
        if index is None:
            # A burst of first requests, or of unknown names, asks the server once.
            asked_at = time.monotonic()
            async with self._asking:
                index = self._cards.knows(name) or self._cards.read_since(asked_at)
                if index is None:
                    index = self._cards.put(await self.store.cards())
        return index

    async def cancel(self, job_id: str) -> bool:
        """See :meth:`Connections.cancel <pagefleet.api.client.connections.Connections.cancel>`."""
        verdict = await self.store.run(operations.cancel(job_id))
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            await self.in_thread(self._closer.close, job_id)
        return verdict is not CancelVerdict.FINAL

    async def expire(self, job_id: str) -> None:
        """SWEEP's part for a deadline (protocol line 13): with no worker alive nobody else would end it."""
        if await self.store.run(operations.expire(job_id)):
            await self.in_thread(self._closer.close, job_id)

    async def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        if not await self.in_thread(self._closer.delete, job_id):
            raise job_not_found(job_id)

    async def _beat(self) -> None:
        await self.store.beat_client(self.client_id)
        self._settle_soon()

    def _wake(self) -> None:
        """From any thread: a reader has left."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._settle_soon)

    def _settle_soon(self) -> None:
        """Beside what is heard meanwhile: they may be many."""
        if (
            self._is_open
            and self.readers.num_departures
            and (self._settling is None or self._settling.done())
        ):
            self._settling = self.to_the_end(self._settle())

    async def _settle(self) -> None:
        for departure in self.readers.departures():
            try:
                await self._tell(departure)
            except RedisUnavailable:
                # With the next heartbeat.
                self.readers.put_back(departure)
                return
            except FleetError as error:
                logger.debug("job %s has lost its reader: %s", departure.job_id, error)

    async def _tell(self, departure: Departure) -> None:
        job_id = departure.job_id
        if departure.is_orphan:
            verdict = await self.store.run(operations.cancel(job_id))
            if verdict is CancelVerdict.MISSING and time.monotonic() < departure.until:
                self.readers.put_back(departure)
        else:
            verdict = await self.store.run(operations.leave(job_id, self.client_id))
            if verdict is CancelVerdict.READ and self.readers.reads(job_id):
                # Somebody came while this one left.
                await self.store.run(operations.watch(job_id, self.client_id))
        if verdict is CancelVerdict.ENDED:
            await self.in_thread(self._closer.close, job_id)
