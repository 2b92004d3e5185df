"""ActiveJob: a job that this worker holds. JobMessage: the Celery message that brought it."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.operation_types import StepItem
from pagefleet.engine import SequenceOutput
from pagefleet.workers.job.active_choice import ActiveChoice
from pagefleet.workers.job.bare_message import BareMessage
from pagefleet.workers.job.job_times import JobTimes
from pagefleet.workers.job.output_encoder import OutputEncoder

_serials = itertools.count(1)


class JobMessage(ABC):
    """A message from the queue. The worker settles it exactly once, with ``finish``, ``reject``, ``drop``,
    ``defer`` or ``requeue``."""

    job_id: str
    queue: str
    """The queue that the message came from; the job's ledger has the same name."""
    lane: Lane
    bare: BareMessage | None
    """The request of a message that a service sent without SUBMIT; None for a message that names a job."""
    refusal: str | None = None
    """Why the message cannot become a job, if the message gate has already found a fault."""
    context: Any
    """Celery's ``Context`` of the message. Only ``workers/queue/canvas.py`` reads it."""

    @property
    @abstractmethod
    def has_callbacks(self) -> bool:
        """Whether Celery has to run something after the job: links, a chain, a chord."""

    @abstractmethod
    def mark_started(self, event_fields: Mapping[str, Any]) -> None:
        """The job was accepted. Celery shows it as STARTED; ``task-started`` carries ``event_fields``."""

    @abstractmethod
    def finish(self, record: JobRecord) -> None:
        """The job is closed: acknowledge the message and report the job's outcome."""

    @abstractmethod
    def reject(self, error: Exception) -> None:
        """The message could not become a job, and its failed result is stored: acknowledge it and report a
        failure."""

    @abstractmethod
    def drop(self) -> None:
        """Another message or worker has the job: acknowledge without a report."""

    @abstractmethod
    def defer(self) -> None:
        """This worker cannot run the job, which waits in Redis until it is sent again: acknowledge the
        message and report it as requeued."""

    @abstractmethod
    def requeue(self) -> None:
        """Put the message back at the front of its queue."""


@dataclass(slots=True, eq=False)
class ActiveJob:
    """One attempt at a job. The publisher's thread owns the mutable fields once the engine has the job."""

    job_id: str
    epoch: int
    message: JobMessage
    times: JobTimes = field(default_factory=JobTimes)
    tenant: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    choices: list[ActiveChoice] = field(default_factory=lambda: [ActiveChoice(0)])
    encoder: OutputEncoder | None = None
    accepted_sent: bool = False
    last_sent_at: float = field(default_factory=time.monotonic)
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def request_id(self) -> str:
        """The engine's id of this attempt.

        The job's id is not unique in the engine: if this worker loses a job and claims it again, a step may
        still be computing the lost attempt. The epoch is not unique either: it repeats if the job's hash was
        deleted or overwritten.
        """
        return f"{self.job_id}#{self.serial}"

    @property
    def has_tokens(self) -> bool:
        return any(choice.token_ids for choice in self.choices)

    @property
    def num_unfinished_choices(self) -> int:
        """Each of them is, or will be, a sequence of the engine."""
        return sum(not choice.has_ended for choice in self.choices)

    @property
    def has_unsent(self) -> bool:
        return not self.accepted_sent or any(choice.has_unsent for choice in self.choices)

    @property
    def has_ended(self) -> bool:
        return all(choice.has_ended for choice in self.choices)

    def add_output(self, output: SequenceOutput) -> None:
        """Add the tokens that a step produced for one choice."""
        choice = self.choices[output.choice]
        assert output.offset == len(choice.token_ids), f"job {self.job_id} skipped a token"
        assert self.encoder is not None, self.job_id
        if output.choice == output.offset == 0 and output.token_ids and output.num_cached_tokens:
            self.num_cached_tokens = min(output.num_cached_tokens, self.num_prompt_tokens)
            # Send `accepted` again: it carries the number of cached tokens, which is known only now.
            self.accepted_sent = False
        choice.token_ids += output.token_ids
        choice.texts += self.encoder.texts(output.offset, output.texts)
        if choice.logprobs is not None:
            choice.logprobs += self.encoder.logprobs(output.logprobs)
        if output.prompt_logprobs:
            choice.prompt_logprobs = self.encoder.logprobs(output.prompt_logprobs)
        if output.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = output.finish_reason.value, output.stop_reason

    def next_items(self) -> list[StepItem]:
        """Return the items of the next STEP: everything that the log does not contain yet.

        At least one item for an unfinished job, because its reply reports a cancel or a passed deadline.
        """
        unsent = [choice for choice in self.choices if choice.has_unsent]
        unfinished = [choice for choice in self.choices if not choice.has_ended]
        accepted = None if self.accepted_sent else self.num_prompt_tokens
        items = []
        for choice in unsent or unfinished[:1]:
            entry = choice.next_entry()
            fence = (self.job_id, self.epoch, choice.index, choice.num_sent)
            items.append(StepItem(*fence, entry, accepted, self.num_cached_tokens))
            accepted = None
        return items
