"""LiveMetrics: values of the engine, the lease and the message gate, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pagefleet.api.contract.messages import Fingerprint, WorkerStatus
from pagefleet.engine import EngineStats


class LeaseFigures(Protocol):
    """The values of the lease that are exported."""

    lease_s: float
    num_late_beats: int

    @property
    def age_s(self) -> float | None: ...


class LiveMetrics(Collector):
    """Exports values that other parts of the worker maintain; counts nothing itself.

    Args:
        stats: returns the engine's statistics.
        status: returns the worker's status.
    """

    def __init__(
        self,
        *,
        stats: Callable[[], EngineStats],
        status: Callable[[], WorkerStatus],
        fingerprint: Fingerprint,
        lease: LeaseFigures,
    ) -> None:
        self._stats = stats
        self._status = status
        self._fingerprint = fingerprint
        self._lease = lease

    def collect(self) -> Iterable[Metric]:
        stats, status = self._stats(), self._status()
        model = status.model
        used = 1 - stats.num_free_blocks / max(1, stats.num_blocks)
        yield _gauge("num_requests_running", "Sequences in the running batch.", model, stats.num_running)
        yield _gauge("num_requests_waiting", "Sequences waiting in the engine.", model, stats.num_waiting)
        yield _gauge("kv_cache_usage_perc", "Share of the KV blocks in use, from 0 to 1.", model, used)
        yield _gauge(
            "kv_cache_waste_perc",
            "Share of the slots in used KV blocks without a token, from 0 to 1.",
            model,
            stats.kv_waste,
        )
        yield _gauge("num_kv_blocks", "KV blocks in total.", model, stats.num_blocks)
        yield _gauge("lease_seconds", "Duration of a lease.", model, self._lease.lease_s)
        yield _gauge("lease_age_seconds", "Time since the last successful beat.", model, self._lease.age_s)
        for name, documentation, value in (
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_cache_hits),
            (
                "spec_decode_num_draft_tokens",
                "Draft tokens that a step verified.",
                stats.num_draft_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Draft tokens that were accepted.",
                stats.num_accepted_tokens,
            ),
            ("num_preemptions", "Sequences whose blocks were taken for others.", stats.num_preemptions),
            (
                "late_beats",
                "Beats sent after two thirds of the lease had passed.",
                self._lease.num_late_beats,
            ),
            ("bad_messages", "Messages and jobs that could not be read.", status.num_bad_messages),
        ):
            yield _counter(name, documentation, model, value)
        yield self._info(status)

    def _info(self, status: WorkerStatus) -> Metric:
        family = InfoMetricFamily("pagefleet_worker", "Identity of the worker.", labels=["model"])
        mine = self._fingerprint
        about = {"worker_id": status.worker_id, "backend": mine.backend, "dtype": mine.dtype}
        about["version"] = mine.version
        family.add_metric([status.model], about)
        return family


def _gauge(name: str, documentation: str, model: str, value: float | None) -> Metric:
    """Return a gauge, without a sample if the value is None."""
    family = GaugeMetricFamily(f"pagefleet_{name}", documentation, labels=["model"])
    if value is not None:
        family.add_metric([model], value)
    return family


def _counter(name: str, documentation: str, model: str, value: float) -> Metric:
    family = CounterMetricFamily(f"pagefleet_{name}", documentation, labels=["model"])
    family.add_metric([model], value)
    return family
