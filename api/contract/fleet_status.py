"""FleetStatus: the queues, workers and jobs of a fleet at one moment, as ``pagefleet status`` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import ModelCard, WorkerStatus


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """``num_queued``: messages in the broker. ``num_open``: jobs that are not closed, queued and running."""

    name: str
    model: str
    lane: Lane
    num_queued: int
    num_open: int


@dataclass(frozen=True, slots=True)
class RunningJob:
    job_id: str
    model: str
    worker_id: str
    num_tokens: int
    attempts: int
    running_s: float


@dataclass(frozen=True, slots=True)
class RefusedJob:
    """A job that waits because no worker has the weights of its tokens; ``reason`` is for people."""

    job_id: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class FleetStatus:
    models: list[ModelCard]
    workers: list[WorkerStatus]
    queues: list[QueueStatus]
    running: list[RunningJob]
    refused: list[RefusedJob]
    num_dead_letters: int
    hidden: list[str] = field(default_factory=list)
    """Ids of open jobs that this connection's Redis user may not read."""
