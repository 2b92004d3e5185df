"""What ``pagefleet status`` shows: queues, workers and jobs at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import ModelCard, WorkerStatus


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """``num_queued`` messages wait in the broker; ``num_open`` jobs have not been closed yet."""

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
    """A job that a worker gave back, and why: it waits for another one."""

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
    """Open jobs, by id, of which the user of this connection may not know more."""
