"""FleetView: the state of a fleet at one moment. It does not know terminals.

It is read from ledgers, leases and model cards, for which the rights of a monitor's Redis user suffice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pagefleet.api.broker.status import num_open, num_queued, oldest_waiting_s
from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_store import JobStore

_GONE_FOR_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    status: WorkerStatus
    beat_age_s: float

    @property
    def is_late(self) -> bool:
        """Whether two thirds of the lease have passed without a heartbeat; there should be six per lease."""
        lease_s = self.status.lease_s
        return lease_s is not None and self.beat_age_s > 2 / 3 * lease_s

    @property
    def kv_usage(self) -> float:
        return 1 - self.status.num_free_blocks / self.status.num_blocks if self.status.num_blocks else 0.0


@dataclass(frozen=True, slots=True)
class GoneWorker:
    """A worker that stopped or died less than 30 seconds ago."""

    worker_id: str
    beat_age_s: float


@dataclass(frozen=True, slots=True)
class QueueView:
    model: str
    lane: Lane
    num_queued: int
    num_open: int
    oldest_s: float
    num_workers: int


@dataclass(frozen=True, slots=True)
class FleetView:
    read_at: float
    """Unix time of the server, in seconds."""
    workers: list[WorkerView]
    gone: list[GoneWorker]
    queues: list[QueueView]
    num_dead_letters: int

    @property
    def num_running(self) -> int:
        return sum(worker.status.num_running for worker in self.workers)

    @property
    def num_queued(self) -> int:
        return sum(queue.num_queued for queue in self.queues)

    @property
    def generation_tok_s(self) -> float:
        return sum(worker.status.generation_tok_s for worker in self.workers)


def read_view(store: JobStore) -> FleetView:
    """Read the current state. Raises: RedisUnavailable."""
    statuses = store.workers()
    with redis_errors(store.settings.url):
        seconds, micros = store.redis.time()
        beats = dict(store.redis.zrange(keys.WORKERS, 0, -1, withscores=True))
    now = float(seconds) + float(micros) / 1e6
    ages = {worker_id: max(0.0, now - beat_ms / 1000) for worker_id, beat_ms in beats.items()}
    alive = {status.worker_id for status in statuses}
    return FleetView(
        read_at=now,
        workers=[WorkerView(status, ages.get(status.worker_id, 0.0)) for status in statuses],
        gone=[GoneWorker(each, age) for each, age in ages.items() if each not in alive and age < _GONE_FOR_S],
        queues=_queues(store, statuses),
        num_dead_letters=len(store.dead_letters()),
    )


def _queues(store: JobStore, workers: list[WorkerStatus]) -> list[QueueView]:
    held = {job_id for worker in workers for job_id in worker.job_ids}
    queues = []
    for card in store.cards():
        num_workers = sum(worker.model == card.name for worker in workers)
        for lane in keys.LANES:
            name = keys.queue(card.name, lane)
            depth, oldest_s = num_queued(store, name), oldest_waiting_s(store, card.name, lane, held)
            num_jobs = num_open(store, card.name, lane)
            queues.append(QueueView(card.name, lane, depth, num_jobs, oldest_s, num_workers))
    return queues
