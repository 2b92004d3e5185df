"""A job that this worker holds, and the Celery message that brought it."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.operations import StepItem
from pagefleet.engine import SequenceOutput
from pagefleet.workers.job.active_choice import ActiveChoice
from pagefleet.workers.job.bare_message import BareMessage
from pagefleet.workers.job.job_times import JobTimes
from pagefleet.workers.job.speller import Speller

_serials = itertools.count(1)


class JobMessage(ABC):
    """A message of the queue, and how the worker answers it. Exactly one of the answers, once."""

    job_id: str
    queue: str
    """Where it came from: that of the job's ledger."""
    lane: Lane
    bare: BareMessage | None
    """What a service sent that bypassed submit; None for a thin message."""
    refusal: str | None = None
    """Why no job can be made of it, where that was seen before the message reached Celery."""
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
        """There never was a job (nothing could be made of the message), and its result is stored:
        acknowledged, shown as a failure."""

    @abstractmethod
    def dropped(self) -> None:
        """Another message or worker has the job: acknowledged in silence."""

    @abstractmethod
    def left_waiting(self) -> None:
        """This worker can't do it, and the job waits in Redis for another message: acknowledged, shown as one
        that goes back to its queue."""

    @abstractmethod
    def put_back(self) -> None:
        """To the front of the queue: this worker gives it up for now."""


@dataclass(slots=True, eq=False)
class ActiveJob:
    """One attempt. The publisher's thread owns the mutable fields once the job is in the engine."""

    job_id: str
    epoch: int
    message: JobMessage
    times: JobTimes = field(default_factory=JobTimes)
    tenant: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    choices: list[ActiveChoice] = field(default_factory=lambda: [ActiveChoice(0)])
    speller: Speller | None = None
    accepted_sent: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def request_id(self) -> str:
        """What the engine calls this attempt. Not the job's id: a step may still be computing an attempt that
        was lost when the same worker claims the job again. Nor its epoch: that comes twice where the hash was
        deleted or overwritten meanwhile."""
        return f"{self.job_id}#{self.serial}"

    @property
    def has_tokens(self) -> bool:
        return any(choice.token_ids for choice in self.choices)

    @property
    def num_going_on(self) -> int:
        """Choices that have not ended: sequences of the engine, or soon to be."""
        return sum(not choice.has_ended for choice in self.choices)

    @property
    def has_news(self) -> bool:
        return not self.accepted_sent or any(choice.has_news for choice in self.choices)

    @property
    def has_ended(self) -> bool:
        return all(choice.has_ended for choice in self.choices)

    def take(self, output: SequenceOutput) -> None:
        """Adds what a step gave one of its choices."""
        choice = self.choices[output.choice]
        assert output.offset == len(choice.token_ids), f"job {self.job_id} skipped a token"
        assert self.speller is not None, self.job_id
        if output.choice == output.offset == 0 and output.token_ids and output.num_cached_tokens:
            self.num_cached_tokens = min(output.num_cached_tokens, self.num_prompt_tokens)
            # Told once more, with what is known now.
            self.accepted_sent = False
        choice.token_ids += output.token_ids
        choice.texts += self.speller.texts(output.offset, output.texts)
        if choice.logprobs is not None:
            choice.logprobs += self.speller.logprobs(output.logprobs)
        if output.prompt_logprobs:
            choice.prompt_logprobs = self.speller.logprobs(output.prompt_logprobs)
        if output.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = output.finish_reason.value, output.stop_reason

    def next_items(self) -> list[StepItem]:
        """Everything that the log does not have yet, at least one item: it asks after the job too."""
        news = [choice for choice in self.choices if choice.has_news]
        going_on = [choice for choice in self.choices if not choice.has_ended]
        accepted = None if self.accepted_sent else self.num_prompt_tokens
        items = []
        for choice in news or going_on[:1]:
            entry = choice.next_entry()
            fenced = (self.job_id, self.epoch, choice.index, choice.num_sent)
            items.append(StepItem(*fenced, entry, accepted, self.num_cached_tokens))
            accepted = None
        return items
