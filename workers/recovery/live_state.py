"""LiveState: what the engine, the lease and the gate know at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pagefleet.api.contract.messages import Fingerprint, WorkerStatus
from pagefleet.engine import EngineStats
from pagefleet.workers.recovery.lease import Lease


class LiveState(Collector):
    """Nothing is counted for it: it reads what the parts keep anyway.

    Args:
        stats: the engine's figures.
        status: what the worker says of itself.
    """

    def __init__(
        self,
        *,
        stats: Callable[[], EngineStats],
        status: Callable[[], WorkerStatus],
        fingerprint: Fingerprint,
        lease: Lease,
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
        yield _gauge("num_requests_waiting", "Sequences that wait in the engine.", model, stats.num_waiting)
        yield _gauge("kv_cache_usage_perc", "KV blocks in use; 1 is all of them.", model, used)
        yield _gauge(
            "kv_cache_waste_perc",
            "Slots without a token in used KV blocks.",
            model,
            stats.kv_waste,
        )
        yield _gauge("num_kv_blocks", "KV blocks that there are.", model, stats.num_blocks)
        yield _gauge("lease_seconds", "How long a lease lasts.", model, self._lease.lease_s)
        yield _gauge("lease_age_seconds", "Since the last beat that Redis took.", model, self._lease.age_s)
        for name, documentation, value in (
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_cache_queries),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_cache_hits),
            (
                "spec_decode_num_draft_tokens",
                "Tokens guessed ahead that a step computed.",
                stats.num_draft_tokens,
            ),
            (
                "spec_decode_num_accepted_tokens",
                "Tokens guessed ahead that were right.",
                stats.num_accepted_tokens,
            ),
            ("num_preemptions", "Sequences that gave their blocks up.", stats.num_preemptions),
            (
                "late_beats",
                "Beats that came when two thirds of the lease were gone.",
                self._lease.num_late_beats,
            ),
            ("bad_messages", "Messages and jobs that could not be read.", status.num_bad_messages),
        ):
            yield _counter(name, documentation, model, value)
        yield self._info(status)

    def _info(self, status: WorkerStatus) -> Metric:
        family = InfoMetricFamily("pagefleet_worker", "Which worker this is.", labels=["model"])
        mine = self._fingerprint
        about = {"worker_id": status.worker_id, "backend": mine.backend, "dtype": mine.dtype}
        about["version"] = mine.version
        family.add_metric([status.model], about)
        return family


def _gauge(name: str, documentation: str, model: str, value: float | None) -> Metric:
    """Without a sample where there is no value yet."""
    family = GaugeMetricFamily(f"pagefleet_{name}", documentation, labels=["model"])
    if value is not None:
        family.add_metric([model], value)
    return family


def _counter(name: str, documentation: str, model: str, value: float) -> Metric:
    family = CounterMetricFamily(f"pagefleet_{name}", documentation, labels=["model"])
    family.add_metric([model], value)
    return family
