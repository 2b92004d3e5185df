"""AsyncConnections: everything that one client holds open."""

from __future__ import annotations

import time
import uuid

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.envelope import JobMessageEncoder
from pagefleet.api.client.asynchronous.batching import AsyncOperationBatch
from pagefleet.api.client.asynchronous.presence import AsyncPresence
from pagefleet.api.client.asynchronous.questions import AsyncQuestions
from pagefleet.api.client.asynchronous.resources import blocking_store
from pagefleet.api.client.asynchronous.subscriber import AsyncSubscriber
from pagefleet.api.client.asynchronous.tasks import AsyncTasks
from pagefleet.api.client.cards import CardCache
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.async_io import Lock
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.connection import database_of
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.operation_types import CancelVerdict


class AsyncConnections:
    """Nothing is connected before it is needed. After :meth:`close` it can be opened again."""

    def __init__(self, settings: FleetSettings) -> None:
        self.store = AsyncJobStore(settings)
        self.blocking_store = blocking_store(self.store)
        self.tasks = AsyncTasks()
        self.questions = AsyncQuestions(self.store, self.tasks)
        self.app = make_celery(settings)
        self.messages = JobMessageEncoder(self.app, database_of(self.store.redis))
        self.batch = AsyncOperationBatch(self.store)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        self._closer = JobCloser(self.blocking_store, self.app)
        self._presence = AsyncPresence(self.store, self._closer, self.tasks, self.client_id)
        self.readers = self._presence.readers
        self.subscriber = AsyncSubscriber(settings, self.channel, self._presence.beat, self._presence.report)
        self.readers.call_on_abandoned(self.subscriber.report_soon)
        self.subscriber.stop_with(self)
        self._cards = CardCache(settings.card_ttl_s)
        self._opening = Lock()
        self._reading_cards = Lock()
        self._is_open = False

    async def open(self) -> None:
        """Start to listen, if this has not happened yet.

        Raises:
            RedisUnavailable: within the connect timeout.
        """
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                await self.subscriber.open()
                self._is_open = True

    async def close(self) -> None:
        """Wait for all work that uses the connections, then close them."""
        # A call that opens the connections waits until they are closed.
        async with self._opening:
            was_open, self._is_open = self._is_open, False
            await self.subscriber.close()
            await self.tasks.wait()
            if was_open:
                await self._presence.report()
            await self.questions.close()
            await self.store.close_connections()
            self.blocking_store.close_connections()
            self.app.close()

    async def index(self, name: str | None) -> CardIndex:
        """Return the model cards, which may be some seconds old if ``name`` is among them."""
        index = self._cards.get(name)
        if index is None:
            # A burst of first requests, or of unknown names, reads the cards once.
            asked_at = time.monotonic()
            async with self._reading_cards:
                index = self._cards.get(name) or self._cards.read_since(asked_at)
                if index is None:
                    index = self._cards.put(await self.store.cards())
        return index

    async def cancel(self, job_id: str) -> bool:
        """CANCEL (protocol line 16), and CLOSE if no worker runs the job.

        Returns:
            False if the job had ended.

        Raises:
            JobNotFound.
        """
        verdict = await self.store.run(operations.cancel(job_id))
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            await self.tasks.in_thread(self._closer.close, job_id)
        return verdict is not CancelVerdict.FINAL

    async def expire(self, job_id: str) -> None:
        """End a waiting job whose deadline has passed (protocol line 13). No worker may be there to do it."""
        if await self.store.run(operations.expire(job_id)):
            await self.tasks.in_thread(self._closer.close, job_id)

    async def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        if not await self.tasks.in_thread(self._closer.delete, job_id):
            raise job_not_found(job_id)
