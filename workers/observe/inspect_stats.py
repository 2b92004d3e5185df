"""InspectStats: current statistics for `celery inspect stats` and for Flower's page of the worker."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pagefleet.engine import EngineStats

_WINDOW_S: Final = 5.0


class InspectStats:
    """Collects the lines. Prometheus reads the same values through ``live_metrics.py``.

    Args:
        stats: returns the engine's statistics.
        num_tokens: returns the number of tokens generated so far.
    """

    def __init__(self, stats: Callable[[], EngineStats], num_tokens: Callable[[], int]) -> None:
        self._stats = stats
        self._num_tokens = num_tokens
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def sample(self) -> None:
        """Record the number of tokens, for the rate. Call this a few times per second."""
        now = time.monotonic()
        self._samples.append((now, self._num_tokens()))
        while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 1:
            self._samples.popleft()

    @property
    def tokens_per_second(self) -> float:
        """The average of the last five seconds."""
        sampled_at, num_before = self._samples[0]
        return (self._num_tokens() - num_before) / max(1e-3, time.monotonic() - sampled_at)

    def now(self) -> dict[str, int | float]:
        """Return the statistics by the names that Flower shows."""
        stats = self._stats()
        num_used = stats.num_blocks - stats.num_free_blocks
        return {
            "sequences-running": stats.num_running,
            "sequences-waiting": stats.num_waiting,
            "KV-blocks-used": num_used,
            "KV-blocks-total": stats.num_blocks,
            "KV-use-%": round(100 * num_used / max(1, stats.num_blocks), 1),
            **{
                f"KV-blocks-used-window-{group.window}": group.num_blocks - group.num_free_blocks
                for group in stats.kv_groups
                if group.window is not None
            },
            "generation-tokens-per-second": round(self.tokens_per_second, 1),
        }
