"""IntervalHistogram: a Prometheus histogram that adds many equal observations in one call."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class IntervalHistogram(Collector):
    """All sequences of a step waited equally long for their token. This class adds 64 of them in one call;
    prometheus-client's histogram would need 64 calls. Not thread-safe: a reader may see a part of a step.

    Args:
        buckets: ascending upper bounds, without the infinite one.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._bounds = tuple(buckets)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, label_values: tuple[str, ...]) -> None:
        """Create a series before its first observation."""
        self._counts.setdefault(label_values, [0] * (len(self._bounds) + 1))
        self._sums.setdefault(label_values, 0.0)

    def observe(self, label_values: tuple[str, ...], seconds: float, count: int = 1) -> None:
        """Add observations. The labels must have been passed to :meth:`add` before."""
        self._counts[label_values][bisect_left(self._bounds, seconds)] += count
        self._sums[label_values] += seconds * count

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for label_values, counts in list(self._counts.items()):
            total, buckets = 0, []
            for bound, count in zip(bounds, list(counts), strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(label_values, buckets, self._sums[label_values])
        yield family
