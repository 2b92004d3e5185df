"""OutageRetry: repeat a call until Redis answers. Every operation of the job store is safe to repeat."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from redis.backoff import EqualJitterBackoff

from pagefleet.api.contract.errors import RedisUnavailable

T = TypeVar("T")

logger = logging.getLogger(__name__)

_LOG_EVERY_S: Final = 5.0
# Jitter keeps the workers of a fleet from retrying in step. The cap is small against the lease: a job waits
# at most this much longer than the outage.
_BACKOFF: Final = EqualJitterBackoff(cap=0.2, base=0.025)
_MAX_EXPONENT: Final = 10


class OutageRetry:
    """Repeats calls while Redis is unavailable. All threads of a worker share one instance, so that
    :meth:`set_time_limit` bounds all of them when the worker shuts down."""

    def __init__(self) -> None:
        self._deadline = float("inf")
        self._logged_at = float("-inf")
        self._num_retrying = 0
        self._lock = threading.Lock()

    @property
    def is_retrying(self) -> bool:
        """Whether a call is currently waiting for Redis to come back."""
        return self._num_retrying > 0

    def __call__(self, call: Callable[[], T], reraise: type[RedisUnavailable] | None = None) -> T:
        """Return the result of ``call``, repeating it while it raises RedisUnavailable.

        Args:
            reraise: a kind of RedisUnavailable that is not retried.

        Raises:
            RedisUnavailable: the time limit has passed, or the error is of the kind ``reraise``.
        """
        try:
            return call()
        except RedisUnavailable as error:
            if reraise is not None and isinstance(error, reraise):
                raise
            self._add_retrying(1)
            try:
                return self._retry(call, error, reraise)
            finally:
                self._add_retrying(-1)

    def set_time_limit(self, seconds: float) -> None:
        """Stop retrying after this time. Called when the worker shuts down."""
        self._deadline = time.monotonic() + seconds

    def _retry(
        self, call: Callable[[], T], error: RedisUnavailable, reraise: type[RedisUnavailable] | None
    ) -> T:
        num_failures = 0
        while True:
            if reraise is not None and isinstance(error, reraise):
                raise error
            time_left_s = self._deadline - time.monotonic()
            if time_left_s <= 0:
                raise error
            self._log(error)
            time.sleep(min(_BACKOFF.compute(num_failures), time_left_s))
            num_failures = min(num_failures + 1, _MAX_EXPONENT)
            try:
                return call()
            except RedisUnavailable as again:
                error = again

    def _add_retrying(self, change: int) -> None:
        with self._lock:
            self._num_retrying += change

    def _log(self, error: RedisUnavailable) -> None:
        if time.monotonic() - self._logged_at > _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning("Redis is unavailable, retrying: %s", error)
