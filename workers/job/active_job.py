"""ActiveJob: a job that this worker holds. JobMessage: the Celery message that brought it."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.engine import FinishReason
from pagefleet.engine.outputs import TokenLogprobs
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
    request_id: str = field(init=False)
    """The engine's id of this attempt.

    The job's id is not unique in the engine: if this worker loses a job and claims it again, a step may still
    be computing the lost attempt. The epoch is not unique either: it repeats if the job's hash was deleted or
    overwritten.
    """

    keys: tuple[str, str] = field(init=False)
    """The names of the job's hash and log."""

    def __post_init__(self) -> None:
        self.request_id = f"{self.job_id}#{self.serial}"
        self.keys = (keys.job(self.job_id), keys.log(self.job_id))

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
    def has_unsent_start(self) -> bool:
        """Whether it has started, but is still a suspect in Redis."""
        return any(each.has_unsent for each in self.choices) and not any(
            each.num_sent for each in self.choices
        )

    @property
    def has_ended(self) -> bool:
        return all(choice.has_ended for choice in self.choices)

    def add_tokens(
        self, index: int, offset: int, token_ids: list[int], texts: list[str], num_cached_tokens: int
    ) -> None:
        """Add the tokens that a step produced for one choice."""
        choice = self.choices[index]
        assert offset == len(choice.token_ids), f"job {self.job_id} skipped a token"
        if offset == 0:
            assert self.encoder is not None, self.job_id
            texts = self.encoder.with_echo(texts)
            if index == 0 and token_ids and num_cached_tokens:
                self.num_cached_tokens = min(num_cached_tokens, self.num_prompt_tokens)
                # Send `accepted` again: it carries the number of cached tokens, which is known only now.
                self.accepted_sent = False
        choice.token_ids += token_ids
        choice.texts += texts

    def add_logprobs(self, index: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Add the logprobs of the tokens that were added last."""
        choice = self.choices[index]
        if choice.logprobs is not None:
            assert self.encoder is not None, self.job_id
            choice.logprobs += self.encoder.logprobs(logprobs)

    def set_prompt_logprobs(self, index: int, logprobs: Sequence[TokenLogprobs]) -> None:
        assert self.encoder is not None, self.job_id
        self.choices[index].prompt_logprobs = self.encoder.logprobs(logprobs)

    def set_end(self, index: int, finish_reason: FinishReason, stop_reason: str | int | None) -> None:
        """The engine has ended a choice."""
        choice = self.choices[index]
        choice.finish_reason, choice.stop_reason = finish_reason.value, stop_reason

    def choices_to_send(self) -> list[ActiveChoice]:
        """Return the choices of the next STEP: those with something that the log does not contain yet.

        At least one for an unfinished job, because its reply reports a cancel or a passed deadline.
        """
        if len(self.choices) == 1 and not self.choices[0].has_ended:
            return self.choices
        unsent = [choice for choice in self.choices if choice.has_unsent]
        return unsent or [choice for choice in self.choices if not choice.has_ended][:1]
