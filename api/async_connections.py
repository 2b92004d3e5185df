"""Everything that one asynchronous client holds open."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

from pagefleet.api import keys, operations
from pagefleet.api.async_job_store import AsyncJobStore
from pagefleet.api.async_questions import AsyncQuestions
from pagefleet.api.celery_app import make_celery
from pagefleet.api.closing import JobCloser
from pagefleet.api.connections import CardCache, job_not_found
from pagefleet.api.errors import FleetError, RedisUnavailable
from pagefleet.api.job_store import JobStore
from pagefleet.api.model_cards import CardIndex
from pagefleet.api.operations import CancelVerdict
from pagefleet.api.settings import FleetSettings
from pagefleet.api.subscriber import AsyncSubscriber


class AsyncConnections:
    """:class:`~pagefleet.api.connections.Connections` for one event loop.

    Celery's publisher and result backend are synchronous: what needs them runs in a thread.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self.store = AsyncJobStore(settings)
        self.sync_store = JobStore(settings)
        self.questions = AsyncQuestions(self.store)
        self.app = make_celery(settings)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        self.subscriber = AsyncSubscriber(settings, self.channel, self._beat)
        self._closer = JobCloser(self.sync_store, self.app)
        self._cards = CardCache(settings.card_ttl_s)
        self._asking = asyncio.Lock()
        self._is_open = False
        self._abandoned: set[str] = set()
        self._abandoning: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Raises: RedisUnavailable, within the connect timeout."""
        async with self._asking:
            if not self._is_open:
                await self.subscriber.open()
                self._is_open = True

    async def close(self) -> None:
        await self.subscriber.close()
        if self._abandoning is not None:
            self._abandoning.cancel()
        await self.questions.close()
        await self.store.close_connections()
        self.sync_store.close_connections()
        self.app.close()
        self._is_open = False

    async def index(self, name: str | None) -> CardIndex:
        index = self._cards.knows(name)
        if index is None:
            # A burst of first requests asks the server once.
            async with self._asking:
                index = self._cards.knows(name) or self._cards.put(await self.store.cards())
        return index

    async def cancel(self, job_id: str) -> bool:
        """See :meth:`Connections.cancel <pagefleet.api.connections.Connections.cancel>`."""
        verdict = await self.store.run(operations.cancel(job_id))
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            await asyncio.to_thread(self._closer.close, job_id)
        return verdict is not CancelVerdict.FINAL

    async def abandon(self, job_id: str) -> None:
        """A reader of this client has gone. A job that is not detached ends with its last one, at the latest
        when the server can be asked again."""
        if self.subscriber.hears(job_id):
            return
        try:
            verdict = await self.store.run(operations.leave(job_id, self.client_id))
        except RedisUnavailable:
            self._abandoned.add(job_id)
            return
        if verdict is CancelVerdict.ENDED:
            await asyncio.to_thread(self._closer.close, job_id)
        elif self.subscriber.hears(job_id):
            # Somebody came while this one left.
            await self.store.run(operations.watch(job_id, self.client_id))

    async def expire(self, job_id: str) -> None:
        """SWEEP's part for a deadline (protocol line 13): with no worker alive nobody else would end it."""
        if await self.store.run(operations.expire(job_id)):
            await asyncio.to_thread(self._closer.close, job_id)

    async def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        if not await asyncio.to_thread(self._closer.delete, job_id):
            raise job_not_found(job_id)

    async def _beat(self) -> None:
        await self.store.beat_client(self.client_id)
        if self._abandoned and (self._abandoning is None or self._abandoning.done()):
            # Beside what is heard meanwhile: they may be many.
            self._abandoning = asyncio.ensure_future(self._abandon_again())

    async def _abandon_again(self) -> None:
        """Those whose readers left while the server could not be asked."""
        for job_id in list(self._abandoned):
            self._abandoned.discard(job_id)
            with contextlib.suppress(FleetError):
                await self.abandon(job_id)
