"""FleetCollector: Prometheus metrics of the whole fleet, read from Redis at each scrape.

It only reads, and needs the rights of a monitor (``ops/redis/users.acl``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pagefleet.api.broker.status import num_by_priority, num_open, oldest_waiting_s
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_store import JobStore

logger = logging.getLogger(__name__)

_QUEUE: Final = ("model", "lane")


class FleetCollector(Collector):
    """The collector that ``prometheus_client`` calls.

    If Redis cannot be read it returns no metrics of the fleet, instead of old or incomplete ones, and
    ``pagefleet_fleet_source_up`` is 0.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        begun_at = time.monotonic()
        try:
            families = self._read()
        except FleetError as error:
            logger.warning("cannot read the fleet: %s", error)
            families = []
        up = _gauge("source_up", "Whether Redis could be read for this scrape.")
        up.add_metric([], float(bool(families)))
        seconds = _gauge("source_read_seconds", "Time that reading Redis took for this scrape, in seconds.")
        seconds.add_metric([], time.monotonic() - begun_at)
        return [*families, up, seconds]

    def _read(self) -> list[Metric]:
        """Raises: FleetError."""
        models = [card.name for card in self._store.cards()]
        workers = self._store.workers()
        held = {job_id for worker in workers for job_id in worker.job_ids}
        depth = _gauge("queue_depth", "Messages waiting in the broker.", (*_QUEUE, "priority"))
        oldest = _gauge(
            "oldest_queued_seconds",
            "Age of the oldest job that no worker holds, in seconds; 0 if there is none.",
            _QUEUE,
        )
        open_jobs = _gauge("open_jobs", "Open jobs, including running ones.", _QUEUE)
        for model in models:
            for lane in keys.LANES:
                queue = keys.queue(model, lane)
                for priority, count in num_by_priority(self._store, queue).items():
                    depth.add_metric([model, lane, str(priority)], count)
                oldest.add_metric([model, lane], oldest_waiting_s(self._store, model, lane, held))
                open_jobs.add_metric([model, lane], num_open(self._store, model, lane))
        return [depth, oldest, open_jobs, _workers(models, workers), self._dead_letters()]

    def _dead_letters(self) -> Metric:
        family = _gauge("dead_letters", "Dead letters.")
        family.add_metric([], len(self._store.dead_letters()))
        return family


def _workers(models: Iterable[str], workers: Iterable[WorkerStatus]) -> Metric:
    """The number of workers of each model; models without workers are included, for alerts on 0."""
    alive = [worker.model for worker in workers]
    family = _gauge("workers", "Workers with a lease.", ("model",))
    for model in sorted({*models, *alive}):
        family.add_metric([model], alive.count(model))
    return family


def _gauge(name: str, documentation: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pagefleet_fleet_{name}", documentation, labels=list(labels))
