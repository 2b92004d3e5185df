"""A FleetWorker in this process, with messages that record how they were settled."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.model_cards import CardIndex
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.api.protocol.prepared import prepare
from pagefleet.engine import EngineConfig, LLMEngine, NullOptions
from pagefleet.workers.fleet_worker import FleetWorker
from pagefleet.workers.job.active_job import JobMessage
from pagefleet.workers.job.bare_message import BareMessage
from pagefleet.workers.settings import WorkerSettings

STEP_S = 0.005


class RecordedMessage(JobMessage):
    """Replaces a Celery request. Records all calls in order."""

    context = SimpleNamespace(callbacks=None, errbacks=None, chain=None, chord=None, root_id=None)
    has_callbacks = False

    def __init__(
        self, job_id: str, bare_fields: Mapping[str, Any] | None = None, lane: Lane = "interactive"
    ) -> None:
        self.job_id = job_id
        self.lane = lane
        self.queue = keys.queue("null", lane)
        self.bare = None if bare_fields is None else BareMessage(bare_fields, lane=lane)
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def mark_started(self, event_fields: Mapping[str, Any]) -> None:
        self.answers.put(("started", event_fields))

    def finish(self, record: JobRecord) -> None:
        self.answers.put(("ended", record))

    def reject(self, error: Exception) -> None:
        self.answers.put(("rejected", error))

    def drop(self) -> None:
        self.answers.put(("dropped", None))

    def defer(self) -> None:
        self.answers.put(("left waiting", None))

    def requeue(self) -> None:
        self.answers.put(("put back", None))

    def last_answer(self, timeout_s: float = 60.0) -> tuple[str, Any]:
        """Return the call that settled the message, skipping ``started``."""
        while True:
            kind, value = self.answers.get(timeout=timeout_s)
            if kind != "started":
                return kind, value


def make_worker(
    store: JobStore, worker_id: str, *, step_time_s: float = STEP_S, **settings: Any
) -> FleetWorker:
    """Return a worker of the null model ``null`` that is not started."""
    values = {"model": "null", "backend": "null", "redis_url": store.settings.url, "lease_s": 1.0, **settings}
    worker_settings = WorkerSettings(**values)
    config = EngineConfig(
        model="null",
        backend="null",
        max_num_batched_tokens=worker_settings.max_num_batched_tokens,
        num_speculative_tokens=worker_settings.speculate,
        overlap_steps=worker_settings.overlap_steps,
        null=NullOptions(step_time_s=step_time_s, period=worker_settings.null_period),
    )
    engine = LLMEngine.from_config(config)
    own_store = JobStore(worker_settings)
    return FleetWorker(worker_settings, worker_id, make_celery(worker_settings), own_store, engine)


def submit(store: JobStore, worker: FleetWorker, job_id: str, **fields: Any) -> RecordedMessage:
    """Submit a job as a client does. Return its message."""
    prepared = prepare(CardIndex([worker.card]), job_id, {"prompt": "hello", "seed": 7, **fields}, 0)
    queue_name = keys.queue("null", prepared.request.lane)
    limits = Limits(max_depth=100, max_tenant_depth=100)
    store.submit(job_id, prepared.request, queue=queue_name, channel="pf:reply:test", limits=limits)
    return RecordedMessage(job_id, lane=prepared.request.lane)


def leave(worker: FleetWorker, num_held: int = 0) -> None:
    """Drain a worker that runs without Celery."""
    worker.drain(lambda: num_held, lambda: None, lambda: None)
