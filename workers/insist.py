"""Calls that are repeated until the server answers: every operation of the job store is safe to repeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pagefleet.api.errors import RedisUnavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.1
_LOG_EVERY_S: Final = 5.0


class Insist:
    """Repeats a call through an outage. One for all threads: leaving ends their patience together."""

    def __init__(self) -> None:
        self._until = float("inf")
        self._logged_at = float("-inf")

    def __call__(self, call: Callable[[], T]) -> T:
        """Raises: RedisUnavailable, once :meth:`at_most` has passed."""
        while True:
            try:
                return call()
            except RedisUnavailable as error:
                if time.monotonic() >= self._until:
                    raise
                self._log(error)
                time.sleep(_RETRY_S)

    def at_most(self, seconds: float) -> None:
        """The worker is leaving: an outage may keep it for so long, and no longer."""
        self._until = time.monotonic() + seconds

    def _log(self, error: RedisUnavailable) -> None:
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning("trying again: %s", error)
