"""Reaper: put the messages of dead workers back at the front of their queues."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any, Final

from celery import Celery

from pagefleet.api.contract import keys
from pagefleet.api.protocol.connection import reason_of
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.queue.unacked import restore_unacked

logger = logging.getLogger(__name__)

REAP_INTERVAL_S: Final = 0.5
_LOCK_S: Final = 10.0
_TOMBSTONE_S: Final = 3600.0
"""How long a dead worker is remembered after its last message was restored. BRPOP and kombu's write of the
unacknowledged message are not atomic, so that a message can still appear."""


class Reaper:
    """REAP (protocol line 11). Every worker runs it; a lock selects one of them per dead worker.

    The next claim of a restored job finds an owner without a lease, increments the epoch and continues at
    the end of the log.
    """

    def __init__(self, store: JobStore, worker_id: str, app: Celery) -> None:
        self._store = store
        self._worker_id = worker_id
        self._app = app

    def reap(self) -> int:
        """Run one round. Return how many messages were restored."""
        num_restored = 0
        for dead in self._store.dead_workers():
            if dead.worker_id == self._worker_id:
                continue
            if dead.num_unacked:
                num_restored += self._restore(dead.worker_id)
            elif dead.silent_s > _TOMBSTONE_S:
                self._store.forget_worker(dead.worker_id)
        return num_restored

    def _restore(self, dead_id: str) -> int:
        token = uuid.uuid4().hex
        lock = keys.reap_lock(dead_id)
        if not self._store.try_lock(lock, token, _LOCK_S):
            return 0
        started_at = time.monotonic()
        try:
            with self._connection_as(dead_id) as connection:
                errors = connection.connection_errors + connection.channel_errors
                try:
                    num_restored = restore_unacked(
                        connection.default_channel,
                        dead_id,
                        # The worker may only have been paused, and the lock expires.
                        may_continue=lambda: (
                            time.monotonic() - started_at < _LOCK_S / 2 and not self._store.is_alive(dead_id)
                        ),
                    )
                except errors as error:
                    reason = reason_of(error)
                    logger.warning(
                        "the messages of dead worker %s could not be restored yet: %s", dead_id, reason
                    )
                    return 0
        finally:
            self._store.unlock(lock, token)
        if num_restored:
            logger.warning(
                "worker %s is dead: %d of its messages were restored to their queues", dead_id, num_restored
            )
        return num_restored

    def _connection_as(self, worker_id: str) -> Any:
        """Return a connection whose channel uses that worker's keys for unacknowledged messages."""
        options = {**self._app.conf.broker_transport_options, **keys.unacked(worker_id)}
        return self._app.connection_for_write().clone(transport_options=options)
