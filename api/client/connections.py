"""Everything that one process of a producer holds open, and the one way a job's message is sent."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
import uuid
import weakref
from typing import TYPE_CHECKING

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.client.readers import Departure, Readers
from pagefleet.api.client.subscriber import BEAT_EVERY_S, Subscriber
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_errors import job_not_found
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operations import CancelVerdict

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)


class CardCache:
    """Model cards as last read; a producer asks the server again after ``ttl_s``, or for an unknown name."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._index = CardIndex([])
        self._read_at = float("-inf")

    def knows(self, name: str | None) -> CardIndex | None:
        fresh = time.monotonic() - self._read_at < self._ttl_s
        return self._index if fresh and name is not None and name in self._index else None

    def read_since(self, moment: float) -> CardIndex | None:
        """The cards, if they were read after this moment: all that asked before it need no further look."""
        return self._index if self._read_at > moment else None

    def put(self, cards: list[ModelCard]) -> CardIndex:
        self._index, self._read_at = CardIndex(cards), time.monotonic()
        return self._index


class Settler:
    """Tells the server which jobs have lost their last reader here. The subscriber's thread calls it, and
    keeps nothing else of a client that was dropped."""

    def __init__(self, store: JobStore, closer: JobCloser, client_id: str) -> None:
        self.readers = Readers()
        self._store = store
        self._closer = closer
        self._client_id = client_id
        self._not_before = 0.0

    def settle(self) -> None:
        if time.monotonic() < self._not_before:
            return
        for departure in self.readers.departures():
            try:
                self._tell(departure)
            except RedisUnavailable:
                self.readers.put_back(departure)
                self._not_before = time.monotonic() + BEAT_EVERY_S
                return
            except FleetError as error:
                logger.debug("job %s has lost its reader: %s", departure.job_id, error)

    def _tell(self, departure: Departure) -> None:
        job_id = departure.job_id
        if departure.is_orphan:
            verdict = self._store.cancel(job_id)
            if verdict is CancelVerdict.MISSING and time.monotonic() < departure.until:
                self.readers.put_back(departure)
        else:
            verdict = self._store.run(operations.leave(job_id, self._client_id))
            if verdict is CancelVerdict.READ and self.readers.reads(job_id):
                # Somebody came while this one left.
                self._store.watch(job_id, self._client_id)
        if verdict is CancelVerdict.ENDED:
            self._closer.close(job_id)


class Connections:
    """Everything that a forked child must not share with its parent."""

    def __init__(self, settings: FleetSettings) -> None:
        self.store = JobStore(settings)
        self.app = make_celery(settings)
        self.closer = JobCloser(self.store, self.app)
        self.cards = CardCache(settings.card_ttl_s)
        self.client_id = uuid.uuid4().hex
        self.channel = keys.reply_channel(self.client_id)
        settler = Settler(self.store, self.closer, self.client_id)
        self.readers = settler.readers
        self.subscriber = Subscriber(
            settings,
            self.channel,
            functools.partial(self.store.beat_client, self.client_id),
            settler.settle,
            functools.partial(_wake, self.store, self.channel),
        )
        self.subscriber.open()
        # Of a client that was dropped and not closed, once its last stream is gone too.
        self._stop = weakref.finalize(self, _stop_here, os.getpid(), self.subscriber)

    def close(self) -> None:
        self.subscriber.close()
        self.store.close_connections()
        self.app.close()

    def index(self, name: str | None) -> CardIndex:
        return self.cards.knows(name) or self.cards.put(self.store.cards())

    def cancel(self, job_id: str) -> bool:
        """CANCEL (protocol line 16), and CLOSE where nobody runs the job. False where it had ended.

        Raises:
            JobNotFound: there is no such job.
        """
        verdict = self.store.cancel(job_id)
        if verdict is CancelVerdict.MISSING:
            raise job_not_found(job_id)
        if verdict is CancelVerdict.ENDED:
            self.closer.close(job_id)
        return verdict is not CancelVerdict.FINAL

    def expire(self, job_id: str) -> None:
        """SWEEP's part for a deadline (protocol line 13): with no worker alive nobody else would end it."""
        if self.store.expire(job_id):
            self.closer.close(job_id)

    def delete(self, job_id: str) -> None:
        """Raises: JobNotFound."""
        if not self.closer.delete(job_id):
            raise job_not_found(job_id)


def _wake(store: JobStore, channel: str) -> None:
    with contextlib.suppress(RedisUnavailable), redis_errors(store.settings.url):
        store.redis.publish(channel, "")


def _stop_here(pid: int, subscriber: Subscriber) -> None:
    """Not in a forked child, which has no such thread, and where a lock may be held for ever."""
    if os.getpid() == pid:
        subscriber.stop()
