"""The worker's lease: alive only while the engine loop turns, valid only while the server heard of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from pagefleet.api.errors import RedisUnavailable
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import WorkerStatus
from pagefleet.workers.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_BEATS_A_LEASE: Final = 6


class Lease:
    """BEAT (protocol line 10). A thread sends; it beats only if the engine loop ticked since the last beat,
    so that a wedged engine loses its lease even if its process lives.

    Args:
        status: what the worker says of itself with each beat.
    """

    def __init__(self, store: JobStore, lease_s: float, status: Callable[[], WorkerStatus]) -> None:
        self._store = store
        self._lease_s = lease_s
        self._status = status
        self._valid_until = float("-inf")
        self._ticked = threading.Event()
        self._stopping = threading.Event()
        self._thread = LoopThread("lease", self._run)

    @property
    def valid(self) -> bool:
        """By the local monotonic clock, counted from before the last successful beat was sent."""
        return time.monotonic() < self._valid_until

    def start(self) -> None:
        """Takes the lease. Raises: RedisUnavailable."""
        self._beat()
        self._thread.start()

    def tick(self) -> None:
        """Called by the engine loop in each turn."""
        self._ticked.set()

    def give_up(self) -> None:
        """DRAIN (protocol line 17), last part."""
        self._stopping.set()
        self._thread.join()
        self._valid_until = float("-inf")
        try:
            self._store.leave(self._status().worker_id)
        except RedisUnavailable as error:
            logger.warning("the lease runs out by itself: %s", error)

    def _run(self) -> None:
        while not self._stopping.wait(self._lease_s / _BEATS_A_LEASE):
            if not self._ticked.is_set():
                continue
            self._ticked.clear()
            try:
                self._beat()
            except RedisUnavailable as error:
                logger.warning("beat failed: %s", error)

    def _beat(self) -> None:
        sent_at = time.monotonic()
        self._store.beat(self._status(), self._lease_s)
        self._valid_until = sent_at + self._lease_s
