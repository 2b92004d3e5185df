"""The worker's lease: alive only while the engine loop turns, valid only while the server heard of it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.contract.messages import ModelCard, WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.threads.loop_thread import LoopThread, exit_process

logger = logging.getLogger(__name__)

_BEATS_A_LEASE: Final = 6
_LATE_SHARE: Final = 2 / 3
"""A beat that renews a lease of which more than this is gone is late."""
_WEDGED_AFTER_BEATS: Final = 3 * _BEATS_A_LEASE
"""Beats in a row, so that a process that was stopped and goes on is not taken for a wedged one."""


class Lease:
    """BEAT (protocol line 10). A thread sends; it beats only if the engine loop ticked since the last beat,
    so that a wedged engine loses its lease even if its process lives. After three leases without a tick the
    process ends itself: a wedged one would serve nobody and keep its device.

    Args:
        card: published again where a server without its data has forgotten it.
        status: what the worker says of itself with each beat.
        is_waiting: whether the loop waits for the server now, which is no fault of the engine.
        file: its time of change is when the lease ends, for health checks that should cost nothing.
    """

    def __init__(
        self,
        store: JobStore,
        lease_s: float,
        card: ModelCard,
        status: Callable[[], WorkerStatus],
        is_waiting: Callable[[], bool],
        file: Path | None = None,
    ) -> None:
        self._store = store
        self._card = card
        self._is_waiting = is_waiting
        self._file = file
        self.storage_full = False
        self.num_late_beats = 0
        self.lease_s = lease_s
        self._status = status
        self._valid_until = float("-inf")
        self._ticked = threading.Event()
        self._stopping = threading.Event()
        self._thread = LoopThread("lease", self._run)

    @property
    def valid(self) -> bool:
        """By the local monotonic clock, counted from before the last successful beat was sent."""
        return time.monotonic() < self._valid_until

    @property
    def age_s(self) -> float | None:
        """Since the last beat that the server took, None before the first; at ``lease_s`` it is lost."""
        return time.monotonic() - self._valid_until + self.lease_s if self._valid_until > 0 else None

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
        if self._file is not None:
            # Leaving must not fail by it: the date in it is in the past soon.
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
        try:
            self._store.leave(self._status().worker_id)
        except RedisUnavailable as error:
            logger.warning("the lease runs out by itself: %s", error)

    def _run(self) -> None:
        num_without_tick = 0
        while not self._stopping.wait(self.lease_s / _BEATS_A_LEASE):
            if not self._ticked.is_set():
                num_without_tick = 0 if self._is_waiting() else num_without_tick + 1
                if num_without_tick > _WEDGED_AFTER_BEATS:
                    exit_process("the engine has not finished a step for three lease times")
                continue
            num_without_tick = 0
            self._ticked.clear()
            try:
                self._beat()
            except RedisUnavailable as error:
                logger.warning("beat failed: %s", error)

    def _beat(self) -> None:
        sent_at = time.monotonic()
        knows_card = self._store.beat(self._status(), self.lease_s)
        if (self.age_s or 0.0) > _LATE_SHARE * self.lease_s:
            self.num_late_beats += 1
        self._valid_until = sent_at + self.lease_s
        self._date_file()
        self.storage_full = self._store.is_full()
        if not knows_card and not self.storage_full:
            self._store.publish_card(self._card)

    def _date_file(self) -> None:
        if self._file is None:
            return
        ends_at = time.time() + self._valid_until - time.monotonic()
        try:
            self._file.touch()
            os.utime(self._file, (ends_at, ends_at))
        except OSError as error:
            logger.warning("lease_file: %s", error)
