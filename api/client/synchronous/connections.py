# Generated from api/client/asynchronous/connections.py by `make sync-client`; do not edit.
"""Connections: everything that one client holds open."""

from __future__ import annotations

import time
import uuid

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.envelope import JobMessageEncoder
from pagefleet.api.client.cards import CardCache
from pagefleet.api.client.synchronous.batching import OperationBatch
from pagefleet.api.client.synchronous.presence import Presence
from pagefleet.api.client.synchronous.questions import Questions
from pagefleet.api.client.synchronous.resources import blocking_store
from pagefleet.api.client.synchronous.subscriber import Subscriber
from pagefleet.api.client.synchronous.tasks import Tasks
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.connection import database_of
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import CancelVerdict
from pagefleet.api.protocol.sync_io import Lock


class Connections:
    """Nothing is connected before it is needed. After :meth:`close` it can be opened again."""

    def __init__(self, settings: FleetSettings) -> None:
        self.store = JobStore(settings)
        self.blocking_store = blocking_store(self.store)
        self.tasks = Tasks()
        self.questions = Questions(self.store, self.tasks)
        self.app = make_celery(settings)
        self.messages = JobMessageEncoder(self.app, database_of(self.store.redis))
        self.batch = OperationBatch(self.store)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        self._closer = JobCloser(self.blocking_store, self.app)
        self._presence = Presence(self.store, self._closer, self.tasks, self.client_id)
        self.readers = self._presence.readers
        self.subscriber = Subscriber(settings, self.channel, self._presence.beat, self._presence.report)
        self.readers.call_on_abandoned(self.subscriber.report_soon)
        self.subscriber.stop_with(self)
        self._cards = CardCache(settings.card_ttl_s)
        self._opening = Lock()
        self._reading_cards = Lock()
        self._is_open = False

    def open(self) -> None:
        """Start to listen, if this has not happened yet.

        Raises:
            RedisUnavailable: within the connect timeout.
        """
        if self._is_open:
            return
        with self._opening:
            if not self._is_open:
                self.subscriber.open()
                self._is_open = True

    def close(self) -> None:
        """Wait for all work that uses the connections, then close them."""
        # A call that opens the connections waits until they are closed.
        with self._opening:
            was_open, self._is_open = self._is_open, False
            self.subscriber.close()
            self.tasks.wait()
            if was_open:
                self._presence.report()
            self.questions.close()
            self.store.close_connections()
            self.blocking_store.close_connections()
            self.app.close()

    def index(self, name: str | None) -> CardIndex:
        """Return the model cards, which may be some seconds old if ``name`` is among them."""
        index = self._cards.get(name)
        if index is None:
            # A burst of first requests, or of unknown names, reads the cards once.
            asked_at = time.monotonic()
            with self._reading_cards:
                index = self._cards.get(name) or self._cards.read_since(asked_at)
                if index is None:
                    index = self._cards.put(self.store.cards())
        return index

    def cancel(self, job_id: str) -> bool:
        """CANCEL (protocol line 16), and CLOSE if no worker runs the job.

        Returns:
            False if the job had ended.

        Raises:
            JobNotFound.
        """
        verdict = self.store.run(operations.cancel(job_id))
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            self.tasks.in_thread(self._closer.close, job_id)
        return verdict is not CancelVerdict.FINAL

    def expire(self, job_id: str) -> None:
        """End a waiting job whose deadline has passed (protocol line 13). No worker may be there to do it."""
        if self.store.run(operations.expire(job_id)):
            self.tasks.in_thread(self._closer.close, job_id)

    def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        if not self.tasks.in_thread(self._closer.delete, job_id):
            raise job_not_found(job_id)
