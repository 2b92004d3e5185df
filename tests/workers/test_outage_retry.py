"""OutageRetry: a call is repeated until Redis answers, or until the worker's time to shut down is over."""

from __future__ import annotations

import time

import pytest

from pagefleet.api.contract.errors import RedisUnavailable, StorageFull
from pagefleet.workers.threads.outage_retry import OutageRetry


class Outage:
    """A call that fails for some seconds and then succeeds."""

    def __init__(self, retry: OutageRetry, seconds: float, error: RedisUnavailable) -> None:
        self.num_calls = 0
        self.was_retrying = []
        self._retry = retry
        self._ends_at = time.monotonic() + seconds
        self._error = error

    def __call__(self) -> str:
        self.num_calls += 1
        self.was_retrying.append(self._retry.is_retrying)
        if time.monotonic() < self._ends_at:
            raise self._error
        return "answer"


def test_a_call_returns_soon_after_the_outage():
    retry = OutageRetry()
    outage = Outage(retry, 1.0, RedisUnavailable("away"))
    begun_at = time.monotonic()
    assert retry(outage) == "answer"
    # The longest wait is 0.2 s; the rest is for a busy machine.
    assert time.monotonic() - begun_at < 1.0 + 2.0
    # Waits grow: 25, 50, 100, 200 ms at most, half of that at least.
    assert 4 <= outage.num_calls <= 14
    assert outage.was_retrying == [False] + [True] * (outage.num_calls - 1)
    assert not retry.is_retrying


def test_no_wait_exceeds_the_time_limit():
    retry = OutageRetry()
    retry.set_time_limit(0.3)
    begun_at = time.monotonic()
    with pytest.raises(RedisUnavailable, match="away"):
        retry(Outage(retry, 60.0, RedisUnavailable("away")))
    assert 0.3 <= time.monotonic() - begun_at < 5
    assert not retry.is_retrying


def test_an_error_that_is_not_retried_is_raised_at_once():
    retry = OutageRetry()
    outage = Outage(retry, 60.0, StorageFull("full"))
    with pytest.raises(StorageFull):
        retry(outage, reraise=StorageFull)
    assert outage.num_calls == 1
