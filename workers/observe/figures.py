"""Figures: a worker at this moment, for people; what Prometheus is told is in ``live_state.py``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from pagefleet.engine import EngineStats

_WINDOW_S: Final = 5.0


class Figures:
    """Lines of Flower's page of a worker, and of ``celery inspect stats``.

    Args:
        stats: the engine's own.
        num_tokens: how many it has generated so far.
    """

    def __init__(self, stats: Callable[[], EngineStats], num_tokens: Callable[[], int]) -> None:
        self._stats = stats
        self._num_tokens = num_tokens
        self._notes: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def note(self) -> None:
        """Called every now and then: what a rate is counted from."""
        now = time.monotonic()
        self._notes.append((now, self._num_tokens()))
        while now - self._notes[0][0] > _WINDOW_S and len(self._notes) > 1:
            self._notes.popleft()

    @property
    def tokens_per_second(self) -> float:
        """Over the last five seconds."""
        begun_at, num_before = self._notes[0]
        return (self._num_tokens() - num_before) / max(1e-3, time.monotonic() - begun_at)

    def now(self) -> dict[str, int | float]:
        """By the names under which Flower shows them."""
        stats = self._stats()
        num_used = stats.num_blocks - stats.num_free_blocks
        return {
            "sequences-running": stats.num_running,
            "sequences-waiting": stats.num_waiting,
            "KV-blocks-used": num_used,
            "KV-blocks-total": stats.num_blocks,
            "KV-use-%": round(100 * num_used / max(1, stats.num_blocks), 1),
            "generation-tokens-per-second": round(self.tokens_per_second, 1),
        }
