"""Lease: the worker's heartbeat, renewed only while the engine loop runs and Redis answers."""

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

_BEATS_PER_LEASE: Final = 6
_LATE_AFTER: Final = 2 / 3
"""A beat is late if more than this share of the lease has passed since the last one."""
_MAX_MISSED_TICKS: Final = 3 * _BEATS_PER_LEASE
"""Counted in beats and not in seconds: a process that was stopped for a while has not missed any."""


class Lease:
    """BEAT (protocol line 10), sent by a separate thread.

    The thread sends a beat only if the engine loop has ticked since the last one, so that a wedged engine
    loses its lease although its process is alive. After three lease times without a tick the process exits;
    otherwise it would keep the device without computing anything.

    Args:
        card: published again if Redis has lost it.
        status: the status to send with each beat.
        is_retrying: whether a thread is waiting for Redis. The loop may wait for that thread, so missing
            ticks do not mean that the engine is wedged.
        file: file whose modification time is set to the end of the lease, for cheap health checks.
    """

    def __init__(
        self,
        store: JobStore,
        lease_s: float,
        card: ModelCard,
        status: Callable[[], WorkerStatus],
        is_retrying: Callable[[], bool],
        file: Path | None = None,
    ) -> None:
        self._store = store
        self._card = card
        self._is_retrying = is_retrying
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
        """By the local monotonic clock, counted from the moment before the last successful beat was sent."""
        return time.monotonic() < self._valid_until

    @property
    def age_s(self) -> float | None:
        """Seconds since the last successful beat; None before the first. The lease is lost at ``lease_s``."""
        return time.monotonic() - self._valid_until + self.lease_s if self._valid_until > 0 else None

    def start(self) -> None:
        """Take the lease. Raise RedisUnavailable if the first beat fails."""
        self._beat()
        self._thread.start()

    def tick(self) -> None:
        """Called by the engine loop in each iteration."""
        self._ticked.set()

    def release(self) -> None:
        """Delete the lease, the last part of DRAIN (protocol line 17)."""
        self._stopping.set()
        self._thread.join()
        self._valid_until = float("-inf")
        if self._file is not None:
            # The shutdown must not fail here. A file that remains soon has a date in the past.
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
        try:
            self._store.delete_lease(self._status().worker_id)
        except RedisUnavailable as error:
            logger.warning("the lease was not deleted and will expire: %s", error)

    def _run(self) -> None:
        num_missed = 0
        while not self._stopping.wait(self.lease_s / _BEATS_PER_LEASE):
            if not self._ticked.is_set():
                num_missed = 0 if self._is_retrying() else num_missed + 1
                if num_missed > _MAX_MISSED_TICKS:
                    exit_process("the engine has not finished a step for three lease times")
                continue
            num_missed = 0
            self._ticked.clear()
            try:
                self._beat()
            except RedisUnavailable as error:
                logger.warning("the lease was not renewed: %s", error)

    def _beat(self) -> None:
        sent_at = time.monotonic()
        knows_card = self._store.beat(self._status(), self.lease_s)
        if (self.age_s or 0.0) > _LATE_AFTER * self.lease_s:
            self.num_late_beats += 1
        self._valid_until = sent_at + self.lease_s
        self._update_file()
        self.storage_full = self._store.is_full()
        if not knows_card and not self.storage_full:
            self._store.publish_card(self._card)

    def _update_file(self) -> None:
        if self._file is None:
            return
        ends_at = time.time() + self._valid_until - time.monotonic()
        try:
            self._file.touch()
            os.utime(self._file, (ends_at, ends_at))
        except OSError as error:
            logger.warning("lease_file: cannot be written: %s", error)
