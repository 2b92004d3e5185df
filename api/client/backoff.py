"""Backoff: how long to wait between attempts to reach the server."""

from __future__ import annotations

from redis.backoff import EqualJitterBackoff

_MAX_EXPONENT = 10


class Backoff:
    """Waits that double up to a limit. Half of each is random, so that clients do not retry in step."""

    def __init__(self, base_s: float, cap_s: float) -> None:
        self._backoff = EqualJitterBackoff(cap=cap_s, base=base_s)
        self._num_failures = 0

    def next_s(self) -> float:
        """Return the seconds to wait after another failure."""
        wait_s = self._backoff.compute(self._num_failures)
        self._num_failures = min(self._num_failures + 1, _MAX_EXPONENT)
        return wait_s

    def reset(self) -> None:
        """An attempt has succeeded: the next wait is the shortest again."""
        self._num_failures = 0
