"""RecentStats: a worker's token rate and times to first token of the last minutes, for its status."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, NamedTuple

_RATE_WINDOW_S: Final = 5.0
_TTFT_WINDOW_S: Final = 300.0
_MAX_TTFT_SAMPLES: Final = 256


class _Sample(NamedTuple):
    at: float
    value: float


class Summary(NamedTuple):
    generation_tok_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None


class RecentStats:
    """Keeps at most a few hundred numbers, so that a heartbeat is cheap. Prometheus has the full history."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: deque[_Sample] = deque()
        self._first_tokens: deque[_Sample] = deque(maxlen=_MAX_TTFT_SAMPLES)
        self._started_at = time.monotonic()

    def add_tokens(self, count: int, at: float) -> None:
        with self._lock:
            self._tokens.append(_Sample(at, count))
            _drop_before(self._tokens, at - _RATE_WINDOW_S)

    def add_first_token(self, seconds: float, at: float) -> None:
        with self._lock:
            self._first_tokens.append(_Sample(at, seconds))

    def summary(self, now: float | None = None) -> Summary:
        """Return the figures. The token rate is an average over the whole window, including idle time."""
        now = time.monotonic() if now is None else now
        with self._lock:
            _drop_before(self._tokens, now - _RATE_WINDOW_S)
            _drop_before(self._first_tokens, now - _TTFT_WINDOW_S)
            num_tokens = sum(sample.value for sample in self._tokens)
            times = sorted(sample.value for sample in self._first_tokens)
        window_s = min(_RATE_WINDOW_S, max(0.1, now - self._started_at))
        return Summary(num_tokens / window_s, _quantile(times, 0.5), _quantile(times, 0.95))


def _drop_before(samples: deque[_Sample], oldest: float) -> None:
    while samples and samples[0].at < oldest:
        samples.popleft()


def _quantile(ascending: list[float], share: float) -> float | None:
    """Return the nearest measured value; None if there are none."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else None
