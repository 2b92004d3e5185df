"""What every fleet offers a service, whether it is real or a fake: the base class of all clients."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Unpack

from pagefleet.api import keys
from pagefleet.api.errors import FleetError, InvalidRequest, JobDeleted, JobExists, QueueFull
from pagefleet.api.keys import Lane
from pagefleet.api.messages import (
    GenerateRequest,
    ModelCard,
    SamplingOptions,
    WorkerStatus,
)
from pagefleet.api.model_cards import CardIndex, check_fits, check_limits
from pagefleet.api.operations import NO_LIMIT, Charge, Limits, Submitted
from pagefleet.api.questions import (
    Answer,
    Asked,
    TokenizedPrompt,
    detokenize_question,
    tokenize_question,
)
from pagefleet.api.requests import as_list, as_messages, build_request, check_size
from pagefleet.api.settings import DEFAULT_MAX_REQUEST_BYTES
from pagefleet.api.stored_size import reserved_bytes
from pagefleet.api.structured_outputs import StructuredOptions
from pagefleet.api.token_stream import TokenStream

JOB_ID: Final = r"^[^\s\x00-\x1f]{1,255}$"
DEFAULT_TIMEOUT_S = 600.0
"""How long a stream waits for its next chunk before it raises ``StreamTimeout``."""


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is known to be right as far as a producer can tell, and where it goes."""

    job_id: str
    request: GenerateRequest
    card: ModelCard
    max_open: int | None = None
    """How many choices its tenant's open jobs in its queue may have, where the card allows more."""
    max_stored: int | None = None
    """How many bytes its tenant's jobs may take, where the card allows more."""
    charge: Charge | None = None
    asked: str = ""
    """Hash of what the caller asked for, its defaults not filled in."""

    @property
    def queue(self) -> str:
        return keys.queue(self.card.name, self.request.lane)

    @property
    def num_reserved_bytes(self) -> int:
        """What it counts for its tenant until it is closed."""
        request_json = self.request.model_dump_json(exclude_defaults=True)
        return reserved_bytes(self.request, len(request_json.encode()))

    @property
    def limits(self) -> Limits:
        card = self.card
        return Limits(
            card.max_queue_depth,
            min(card.max_tenant_depth, self.max_open or card.max_tenant_depth),
            min(card.max_tenant_bytes or NO_LIMIT, self.max_stored or NO_LIMIT),
        )


def check_submitted(submitted: Submitted, prepared: Prepared) -> None:
    """Raises: QueueFull, JobExists, JobDeleted, where SUBMIT wrote nothing for it."""
    if submitted.is_other:
        raise job_exists(prepared.job_id)
    if submitted.is_deleted:
        raise JobDeleted(
            f"The job {prepared.job_id!r} was deleted; it is not submitted again.", job_id=prepared.job_id
        )
    if submitted.depth is not None:
        raise QueueFull(
            f"The queue {prepared.queue} holds {submitted.depth} jobs, its limit; try again later.",
            job_id=prepared.job_id,
        )
    if submitted.tenant_depth is not None:
        raise QueueFull(
            f"The queue {prepared.queue} holds {submitted.tenant_depth} choices of the tenant "
            f"{prepared.request.tenant!r}, and this job has {prepared.request.sampling.n}; its limit is "
            f"{prepared.limits.max_tenant_depth}; try again later.",
            param="tenant",
            job_id=prepared.job_id,
        )
    if submitted.tenant_bytes is not None:
        raise _too_much_stored(prepared, submitted.tenant_bytes)


def _too_much_stored(prepared: Prepared, num_stored: int) -> FleetError:
    num_bytes, most = prepared.num_reserved_bytes, prepared.limits.max_tenant_bytes
    told = f"this job may take {num_bytes} bytes with its result"
    if num_bytes > most:
        return InvalidRequest(
            f"max_tokens: {told}, and all jobs of its tenant {most}; ask for fewer tokens, choices or "
            "logprobs.",
            param="max_tokens",
            job_id=prepared.job_id,
        )
    return QueueFull(
        f"The jobs of the tenant {prepared.request.tenant!r} take {num_stored} bytes, and {told}; "
        f"the limit is {most}. Delete jobs, or wait until they expire.",
        param="tenant_bytes",
        job_id=prepared.job_id,
    )


def job_exists(job_id: str) -> JobExists:
    return JobExists(
        f"job_id: {job_id!r} is the id of a job with another request or tenant; choose another id, or read "
        "that job with attach().",
        param="job_id",
        job_id=job_id,
    )


def prepare(
    cards: CardIndex,
    job_id: str | None,
    fields: Mapping[str, Any],
    seed: int,
    max_bytes: int = DEFAULT_MAX_REQUEST_BYTES,
) -> Prepared:
    """Validates a request against the cards; a missing seed becomes ``seed``, the model its canonical name.

    Its size is bounded by ``max_bytes``, that of its result by ``max_tokens`` and the model's context.

    Raises:
        InvalidRequest, UnknownModel, ContextTooLong: nothing was sent anywhere.
    """
    if job_id is not None and not _is_job_id(job_id):
        raise InvalidRequest(
            "job_id: give 1 to 255 characters without blanks or line breaks.", param="job_id"
        )
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"model: a name is expected, not {model!r}.", param="model")
    given = {name: value for name, value in fields.items() if value is not None}
    # Wrong fields are the more useful complaint where the model is unknown too: validate first.
    request = build_request({**given, "model": model or "-"})
    card = cards.resolve(model)
    asked = _hash_of(request.model_copy(update={"model": card.name}))
    # Kept with the job: whoever takes it over draws with the same parameters.
    request = build_request({**card.default_sampling.fill(given), "model": card.name})
    sampling = request.sampling
    if sampling.seed is None:
        sampling = sampling.model_copy(update={"seed": seed})
    if "max_tokens" not in given:
        # The default must not make a model with a short context refuse what nobody asked for.
        most = max(sampling.min_tokens, min(sampling.max_tokens, card.max_model_len))
        sampling = sampling.model_copy(update={"max_tokens": most})
    request = request.model_copy(update={"model": card.name, "sampling": sampling})
    check_fits(request, card)
    check_limits(request, card)
    check_size(len(request.model_dump_json(exclude_defaults=True).encode()), max_bytes)
    return Prepared(job_id or str(uuid.uuid4()), request, card, asked=asked)


def _hash_of(request: GenerateRequest) -> str:
    """The same for the same fields, in whatever order, and in every version that knows them."""
    fields = request.model_dump(mode="json", exclude_defaults=True, exclude={"v"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _is_job_id(job_id: Any) -> bool:
    return isinstance(job_id, str) and re.fullmatch(r"[^\s\x00-\x1f\ud800-\udfff]{1,255}", job_id) is not None


class Fleet(ABC):
    """Send work to a fleet and read its tokens.

    ``generate`` and ``chat`` check the request here and now: a wrong one raises a
    :class:`~pagefleet.api.errors.FleetError` and nothing is enqueued.
    """

    def generate(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        prefix_cache: bool | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> TokenStream:
        """Continues a text (or token ids).

        Args:
            prompt: the text; or ``prompt_token_ids``, exactly one of them.
            model: name or alias; may be left out where the fleet knows one model only.
            job_id: makes the call idempotent: a second one with the same id reads the first one's job; with
                other arguments it raises ``JobExists``.
            lane: ``batch`` fills what ``interactive`` leaves.
            priority: 0..9 within the lane, 9 is the most urgent.
            deadline_s: seconds from now after which the job is given up; its stream then ends with
                finish_reason ``deadline``.
            detached: the job goes on where this process is gone. By default a job of the batch lane does,
                and one of the interactive lane is cancelled after 10 s without its client.
            tenant: on whose behalf; the number of choices in one tenant's open jobs may be limited.
            result_ttl_s: how long the job can be read after its end; by default an hour. The model's workers
                bound it (``max_result_ttl_s``, by default seven days).
            truncate_prompt_tokens: only the last so many tokens of the prompt count.
            cache_salt: the job shares computed prefixes with jobs of the same salt only.
            prefix_cache: False computes the whole prompt and keeps nothing of it for other jobs.
            structured_outputs: what the text must be: one of json_schema, json_object, regex, choice and
                grammar. A schema that is wrong, impossible or not to be kept ends the job with
                ``InvalidRequest``.
            timeout: seconds without a chunk after which the stream raises ``StreamTimeout``.
            sampling: see :class:`~pagefleet.api.messages.SamplingParams`.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, JobExists, QueueFull, RedisUnavailable.
        """
        fields = {
            "prompt": prompt,
            "prompt_token_ids": as_list(prompt_token_ids),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "prefix_cache": prefix_cache,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return self._start(job_id, fields, timeout)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        prefix_cache: bool | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> TokenStream:
        """Answers a conversation through the model's chat template. Arguments as for :meth:`generate`."""
        fields = {
            "messages": as_messages(messages),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "prefix_cache": prefix_cache,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return self._start(job_id, fields, timeout)

    @abstractmethod
    def _start(self, job_id: str | None, fields: Mapping[str, Any], timeout: float | None) -> TokenStream: ...

    @abstractmethod
    def attach(
        self, job_id: str, *, after: int = 0, timeout: float | None = DEFAULT_TIMEOUT_S
    ) -> TokenStream:
        """Reads any job from any process, also after it has ended, from token ``after`` on.

        Raises:
            JobNotFound: there is no such job (any more).
        """

    @abstractmethod
    def cancel(self, job_id: str) -> bool:
        """Stops a job; false where it had ended already. Raises: JobNotFound."""

    @abstractmethod
    def delete(self, job_id: str) -> None:
        """Removes a job, its prompt, its tokens and its result; stops it first where it has not ended.

        Raises: JobNotFound.
        """

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
        return_token_strs: bool = False,
    ) -> TokenizedPrompt:
        """The token ids of a text, or of a conversation in the model's chat template. A worker of the model
        looks them up, also one that has no room for another job; no job comes of it.

        Args:
            add_special_tokens: those that the model expects around a text; by default a prompt has them, and
                messages have those of the template.
            add_generation_prompt: the conversation ends where the assistant's next message begins.
            return_token_strs: also how the vocabulary spells each token.

        Raises:
            InvalidRequest, UnknownModel, NoAnswer, QueueFull, RedisUnavailable.
        """
        options = {
            "add_special_tokens": add_special_tokens,
            "add_generation_prompt": add_generation_prompt,
            "return_token_strs": return_token_strs,
        }
        question, card = tokenize_question(prompt, messages, options), self._card(model)
        asked = Asked(question, card)
        return asked.tokenized(self._ask(asked))

    def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of tokens, special ones as they are written.

        Raises: as :meth:`tokenize`.
        """
        card = self._card(model)
        asked = Asked(detokenize_question(token_ids, card), card)
        return self._ask(asked).prompt or ""

    @abstractmethod
    def _card(self, model: str | None) -> ModelCard:
        """Raises: UnknownModel."""

    @abstractmethod
    def _ask(self, asked: Asked) -> Answer: ...

    @abstractmethod
    def models(self) -> list[ModelCard]: ...

    @abstractmethod
    def status(self) -> FleetStatus: ...

    @abstractmethod
    def close(self) -> None: ...
