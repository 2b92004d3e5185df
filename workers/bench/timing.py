"""Arrival times of tokens, and the figures computed from them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


def percentile(values: Sequence[float], q: float) -> float:
    """Return the nearest-rank percentile, 0 <= q <= 1; NaN if there are no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


def median(values: Sequence[float]) -> float:
    return percentile(values, 0.5)


@dataclass(slots=True)
class StreamTiming:
    """The timing of one request at its reader, in monotonic seconds."""

    submitted_at: float = field(default_factory=time.monotonic)
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    def arrived(self, num_tokens: int) -> None:
        self.arrivals.append((time.monotonic(), num_tokens))

    @property
    def num_tokens(self) -> int:
        return sum(count for _at, count in self.arrivals)

    @property
    def ttft_ms(self) -> float:
        """Time to first token, in milliseconds."""
        return (self.arrivals[0][0] - self.submitted_at) * 1000

    @property
    def itl_ms(self) -> list[float]:
        """Inter-token latencies in milliseconds; tokens that arrive together share their gap."""
        gaps = []
        for (before, _), (at, count) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [(at - before) * 1000 / count] * count
        return gaps


@dataclass(frozen=True, slots=True)
class LoadTiming:
    """All streams of one load."""

    streams: Sequence[StreamTiming]

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_tokens for stream in self.streams)

    @property
    def elapsed_s(self) -> float:
        """Time from the first submission to the last token, in seconds."""
        begin = min(stream.submitted_at for stream in self.streams)
        return max(stream.arrivals[-1][0] for stream in self.streams) - begin

    @property
    def output_tok_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    def ttft_ms(self, q: float) -> float:
        return percentile([stream.ttft_ms for stream in self.streams], q)

    def itl_ms(self, q: float) -> float:
        return percentile([gap for stream in self.streams for gap in stream.itl_ms], q)
