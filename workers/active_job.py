"""A job that this worker holds, and the Celery message that brought it."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagefleet.api.job_record import JobRecord
from pagefleet.api.keys import Lane
from pagefleet.api.messages import LogEntry
from pagefleet.api.operations import StepItem
from pagefleet.workers.job_times import JobTimes

_serials = itertools.count(1)


class JobMessage(ABC):
    """A message of the queue, and how the worker answers it. Exactly one of the answers, once."""

    job_id: str
    lane: Lane
    bare_fields: Mapping[str, Any] | None
    """What a service sent that bypassed submit; None for a thin message."""
    context: Any
    """Celery's own view of the message; only Celery's canvas looks into it."""

    @property
    @abstractmethod
    def has_callbacks(self) -> bool:
        """Whether something is to run after the job: links, a chain, a chord."""

    @abstractmethod
    def started(self, told: Mapping[str, Any]) -> None:
        """The job was accepted: Celery shows it as STARTED, with what is ``told`` of this attempt."""

    @abstractmethod
    def ended(self, record: JobRecord) -> None:
        """The job is closed: acknowledged, and shown with its outcome."""

    @abstractmethod
    def rejected(self, error: Exception) -> None:
        """There never was a job (a bare message that nothing could be made of): acknowledged, a failure."""

    @abstractmethod
    def dropped(self) -> None:
        """Another message or worker has the job: acknowledged in silence."""

    @abstractmethod
    def returned(self) -> None:
        """To the back of the queue: this worker can't do it."""

    @abstractmethod
    def put_back(self) -> None:
        """To the front of the queue: this worker gives it up for now."""


@dataclass(slots=True, eq=False)
class ActiveJob:
    """One attempt. The publisher's thread owns the mutable fields once the job is in the engine.

    ``token_ids`` and ``texts`` hold everything since the job's beginning, the log's part included: the
    publisher can send any suffix again when the server forgot it.
    """

    job_id: str
    epoch: int
    message: JobMessage
    times: JobTimes = field(default_factory=JobTimes)
    tenant: str | None = None
    num_prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    num_sent: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    accepted_sent: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def request_id(self) -> str:
        """What the engine calls this attempt. Not the job's id: a step may still be computing an attempt that
        was lost when the same worker claims the job again. Nor its epoch: that comes twice where the hash was
        deleted or overwritten meanwhile."""
        return f"{self.job_id}#{self.serial}"

    def extend(self, token_ids: Sequence[int], texts: Sequence[str]) -> None:
        """Adds a step's tokens, and what each adds to the text."""
        self.token_ids += token_ids
        self.texts += texts

    def next_item(self) -> StepItem:
        """Everything that the log does not have yet."""
        entry = LogEntry(
            offset=self.num_sent,
            token_ids=self.token_ids[self.num_sent :],
            texts=self.texts[self.num_sent :],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
        accepted = None if self.accepted_sent else self.num_prompt_tokens
        return StepItem(self.job_id, self.epoch, 0, self.num_sent, entry, accepted)
