"""Everything that one asynchronous client holds open."""

from __future__ import annotations

import asyncio
import uuid

from pagefleet.api import keys, operations
from pagefleet.api.async_job_store import AsyncJobStore
from pagefleet.api.celery_app import make_celery
from pagefleet.api.closing import JobCloser
from pagefleet.api.connections import CardCache, job_not_found
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
        self.app = make_celery(settings)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        self.subscriber = AsyncSubscriber(settings, self.channel, self._beat)
        self._closer = JobCloser(self.sync_store, self.app)
        self._cards = CardCache(settings.card_ttl_s)
        self._asking = asyncio.Lock()
        self._is_open = False

    async def open(self) -> None:
        """Raises: RedisUnavailable, within the connect timeout."""
        async with self._asking:
            if not self._is_open:
                await self.subscriber.open()
                self._is_open = True

    async def close(self) -> None:
        await self.subscriber.close()
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
        """A reader of this client has gone. A job that is not detached ends with its last one."""
        if self.subscriber.hears(job_id):
            return
        record = await self.store.read(job_id, with_log=False)
        if record is None or record.state.is_final or not record.clients:
            return
        others = [client for client in record.clients if client != self.client_id]
        if not await self.store.any_alive(others):
            await self.cancel(job_id)

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
