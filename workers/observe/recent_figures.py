"""RecentFigures: what a worker did in its last seconds and minutes, for the status in its lease."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, NamedTuple

_RATE_OVER_S: Final = 5.0
_FIRST_TOKENS_OVER_S: Final = 300.0
_MOST_FIRST_TOKENS: Final = 256


class _Amount(NamedTuple):
    at: float
    value: float


class Summary(NamedTuple):
    generation_tok_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class RecentFigures:
    """A few hundred numbers at most, so that a beat stays cheap; Prometheus has the whole history."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: deque[_Amount] = deque()
        self._first_tokens: deque[_Amount] = deque(maxlen=_MOST_FIRST_TOKENS)
        self._begun_at = time.monotonic()

    def add_tokens(self, count: int, at: float) -> None:
        with self._lock:
            self._tokens.append(_Amount(at, count))
            _drop_before(self._tokens, at - _RATE_OVER_S)

    def add_first_token(self, seconds: float, at: float) -> None:
        with self._lock:
            self._first_tokens.append(_Amount(at, seconds))

    def summary(self, now: float | None = None) -> Summary:
        """The rate is over the whole window, also where the worker was idle for a part of it."""
        now = time.monotonic() if now is None else now
        with self._lock:
            _drop_before(self._tokens, now - _RATE_OVER_S)
            _drop_before(self._first_tokens, now - _FIRST_TOKENS_OVER_S)
            num_tokens = sum(amount.value for amount in self._tokens)
            times = sorted(amount.value for amount in self._first_tokens)
        window_s = min(_RATE_OVER_S, max(0.1, now - self._begun_at))
        return Summary(num_tokens / window_s, _quantile(times, 0.5), _quantile(times, 0.95))


def _drop_before(amounts: deque[_Amount], oldest: float) -> None:
    while amounts and amounts[0].at < oldest:
        amounts.popleft()


def _quantile(rising: list[float], share: float) -> float | None:
    """The nearest one that was measured."""
    return rising[min(len(rising) - 1, int(share * len(rising)))] if rising else None
