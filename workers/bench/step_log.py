"""StepLog: when a worker's steps ended, read from its trace, and how much later their tokens arrived."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pagefleet.workers.bench.timing import median


@dataclass(slots=True)
class Arrivals:
    """One stream at its reader: for each chunk the time (``perf_counter``) and the tokens up to its end."""

    times: list[float] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, at: float, end: int) -> None:
        self.times.append(at)
        self.ends.append(end)


@dataclass(frozen=True, slots=True)
class StepLog:
    """The steps of a worker that gives every running stream a token in each step.

    ``first_tokens`` has the index of the step of each job's first token.
    """

    ended_at: Sequence[float]
    first_tokens: Mapping[str, int]

    @classmethod
    def read(cls, trace: Path) -> Self:
        """Read the file of ``pagefleet worker --trace-steps``.

        ``perf_counter`` is the system's monotonic clock, so its values can be compared between processes.
        """
        events = json.loads(trace.read_text())["traceEvents"]
        steps = sorted(
            ((event["ts"] + event["dur"]) / 1e6, event["args"]["first_tokens"])
            for event in events
            if event["name"] == "step"
        )
        # A request's id is that of its job and a serial number.
        first_tokens = {each.partition("#")[0]: index for index, (_, ids) in enumerate(steps) for each in ids}
        return cls([at for at, _ in steps], first_tokens)

    def interval_ms(self, begin: float, end: float) -> float:
        """Return the mean time between two steps that ended in this period."""
        times = [at for at in self.ended_at if begin <= at < end]
        return (times[-1] - times[0]) * 1000 / max(1, len(times) - 1)

    def lags(self, streams: Mapping[str, Arrivals], begin: float, end: float) -> list[tuple[float, float]]:
        """Return for each token that arrived in this period the time and its milliseconds since its step.

        Args:
            streams: by job id.
        """
        found = []
        for job_id, stream in streams.items():
            first, start = self.first_tokens[job_id], 0
            for at, stop in zip(stream.times, stream.ends, strict=True):
                if begin <= at < end:
                    found += [(at, (at - self.ended_at[first + each]) * 1000) for each in range(start, stop)]
                start = stop
        return found


def growth_ms(lags: Sequence[tuple[float, float]]) -> float:
    """Return by how much the median lag of the last quarter exceeds that of the first."""
    ordered = [lag for _, lag in sorted(lags)]
    quarter = max(1, len(ordered) // 4)
    return median(ordered[-quarter:]) - median(ordered[:quarter])
