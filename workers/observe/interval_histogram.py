"""IntervalHistogram: a Prometheus histogram that counts many equal observations at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class IntervalHistogram(Collector):
    """In a step all running sequences waited equally long for their token: 64 of them are one observation
    with a count, where prometheus-client's own histogram would be asked 64 times. Not thread-safe; a reader
    may see a step half counted.

    Args:
        buckets: upper bounds, rising; the one without a bound is added.
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
        """Makes a series exist before its first observation."""
        self._counts.setdefault(label_values, [0] * (len(self._bounds) + 1))
        self._sums.setdefault(label_values, 0.0)

    def observe(self, label_values: tuple[str, ...], seconds: float, count: int = 1) -> None:
        """Only after :meth:`add` of these labels."""
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
