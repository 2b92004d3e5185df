"""Calls that are repeated until the server answers: every operation of the job store is safe to repeat."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pagefleet.api.contract.errors import RedisUnavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.1
_LOG_EVERY_S: Final = 5.0


class Insist:
    """Repeats a call through an outage. One for all threads: leaving ends their patience together."""

    def __init__(self) -> None:
        self._until = float("inf")
        self._logged_at = float("-inf")
        self._num_waiting = 0
        self._lock = threading.Lock()

    @property
    def is_waiting(self) -> bool:
        """Whether a call waits for the server to come back."""
        return self._num_waiting > 0

    def __call__(self, call: Callable[[], T], unless: type[RedisUnavailable] | None = None) -> T:
        """Raises: RedisUnavailable, once :meth:`at_most` has passed; of the kind ``unless`` at once."""
        try:
            return call()
        except RedisUnavailable as error:
            if unless is not None and isinstance(error, unless):
                raise
            self._count(1)
            try:
                return self._repeat(call, error, unless)
            finally:
                self._count(-1)

    def at_most(self, seconds: float) -> None:
        """The worker is leaving: an outage may keep it for so long, and no longer."""
        self._until = time.monotonic() + seconds

    def _repeat(
        self, call: Callable[[], T], error: RedisUnavailable, unless: type[RedisUnavailable] | None
    ) -> T:
        while True:
            if unless is not None and isinstance(error, unless):
                raise error
            if time.monotonic() >= self._until:
                raise error
            self._log(error)
            time.sleep(_RETRY_S)
            try:
                return call()
            except RedisUnavailable as again:
                error = again

    def _count(self, change: int) -> None:
        with self._lock:
            self._num_waiting += change

    def _log(self, error: RedisUnavailable) -> None:
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning("trying again: %s", error)
