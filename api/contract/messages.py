"""The wire contract: requests, log entries, stream events, results and model cards.

Everything that crosses a process boundary is validated by one of these models. They do not depend on Redis or
Celery. Every stored JSON has ``v``, the protocol version of its writer.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from pagefleet.api.contract.chat_message import ChatMessage, Reading, Tool, ToolCall
from pagefleet.api.contract.errors import FleetError, error_from_code
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.logprobs import Logprob, TokenLogprobs
from pagefleet.api.contract.sampling import (
    MAX_RESULT_TOKENS,
    MAX_SEED,
    SamplingDefaults,
    SamplingOptions,
    SamplingParams,
)
from pagefleet.api.contract.wire_model import FIELD_FAULT, StoredModel, wrong

__all__ = [
    "EVENT_KINDS",
    "FIELD_FAULT",
    "MAX_RESULT_TOKENS",
    "MAX_SEED",
    "MAX_TTL_S",
    "PROTOCOL_VERSION",
    "AcceptedEvent",
    "ChatMessage",
    "ChoiceResult",
    "EndedEvent",
    "ErrorInfo",
    "Fingerprint",
    "GenerateRequest",
    "JobResult",
    "JobState",
    "LogEntry",
    "Logprob",
    "ModelCard",
    "Reading",
    "SamplingDefaults",
    "SamplingOptions",
    "SamplingParams",
    "StreamEvent",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "WorkerStatus",
    "parse_event",
    "split_events",
]
from pagefleet.api.contract.structured_outputs import StructuredOutputs

PROTOCOL_VERSION: Final = 1
MAX_DEADLINE_S: Final = 10.0**9
MAX_ECHO: Final = 1_000_000
"""Maximum of a prompt's characters, or tokens, times the choices that echo it: each logs the prompt."""
MAX_TTL_S: Final = 10**9


class JobState(StrEnum):
    """The one-letter states of ``pf:job:<id>``. The last four are final."""

    QUEUED = "Q"
    RUNNING = "R"
    DONE = "D"
    FAILED = "F"
    CANCELLED = "C"
    DEAD = "X"

    @property
    def is_final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class GenerateRequest(StoredModel):
    """One generation: exactly one of ``prompt``, ``prompt_token_ids`` and ``messages``."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=512)
    prompt: str | None = Field(None, max_length=10_000_000)
    prompt_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    """The functions that the model may call."""
    chat_template_kwargs: dict[str, JsonValue] | None = None
    """More variables for the chat template."""
    reading: Reading | None = None
    """How clients read the answer."""
    sampling: SamplingParams = SamplingParams()
    structured_outputs: StructuredOutputs | None = None
    lane: Lane = "interactive"
    priority: int = Field(5, ge=0, le=9, description="9 is the most urgent")
    deadline_s: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_S, description="seconds from submit until the job is given up"
    )

    detached: bool | None = Field(
        None, description="true: continue without a client; the default of the batch lane"
    )
    tenant: str | None = Field(None, min_length=1, max_length=128, description="on whose behalf the job runs")
    result_ttl_s: int | None = Field(
        None, gt=0, le=MAX_TTL_S, description="seconds for which the job can be read after its end"
    )
    truncate_prompt_tokens: int | None = Field(
        None, gt=0, le=MAX_RESULT_TOKENS, description="use only the last N tokens of the prompt"
    )
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="share the prefix cache only with jobs of the same salt",
    )
    prefix_cache: bool | None = Field(
        None, description="false: compute the whole prompt and cache none of it for other jobs"
    )
    return_prompt_token_ids: bool = Field(False, description="return the prompt's token ids in the result")
    echo: bool = Field(
        False,
        description="begin the text with the prompt; stop strings do not apply to it; not for messages",
    )

    @property
    def chat_reading(self) -> Reading | None:
        """How to read the answer as a message; None if the request has no messages."""
        return None if self.messages is None else self.reading or Reading()

    @property
    def is_detached(self) -> bool:
        """Whether the job continues without a client."""
        return self.lane == "batch" if self.detached is None else self.detached

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [
            name for name in ("prompt", "prompt_token_ids", "messages") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of prompt, prompt_token_ids and messages"
                + (f" (got {' and '.join(given)})" if given else "")
            )
        if not getattr(self, given[0]):
            raise wrong(given[0], "must not be empty")
        if self.echo and self.messages is not None:
            raise wrong("echo", "not supported with messages; remove it, or give a prompt")
        for name in ("tools", "chat_template_kwargs", "reading"):
            if getattr(self, name) is not None and self.messages is None:
                raise wrong(name, "not supported with a prompt; give messages")
        if self.echo and self.sampling.n * len(getattr(self, given[0])) > MAX_ECHO:
            raise wrong(
                "echo",
                f"n={self.sampling.n} choices would echo more than {MAX_ECHO:,} characters or tokens; "
                "use fewer choices, or echo=False",
            )
        return self


class ErrorInfo(StoredModel):
    """Why a job was refused or failed: an error of :mod:`pagefleet.api.contract.errors` as JSON."""

    code: str
    message: str
    param: str | None = None

    @classmethod
    def from_error(cls, error: FleetError) -> ErrorInfo:
        return cls(code=error.code, message=error.message, param=error.param)

    def to_error(self, job_id: str) -> FleetError:
        return error_from_code(self.code, self.message, param=self.param, job_id=job_id)


class LogEntry(StoredModel):
    """The tokens that one flush added to a choice: an item of ``pf:log:<id>`` and a ``tokens`` event.

    ``offset`` is the index of ``token_ids[0]`` among the choice's tokens. ``texts[i]`` is the text that
    ``token_ids[i]`` adds, after text that may belong to a stop string is held back. So a reader needs no
    tokenizer, and a stream can be interrupted and continued at any token.
    """

    choice: int = Field(0, ge=0, lt=128)
    offset: int = Field(ge=0, le=MAX_RESULT_TOKENS)
    token_ids: list[int] = Field(max_length=MAX_RESULT_TOKENS)
    texts: list[str] = Field(max_length=MAX_RESULT_TOKENS)
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, if the request asks for them."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One for each prompt token except the first; sent with the first token of choice 0."""
    prompt_token_ids: list[int] | None = None
    """Sent with the first token of choice 0, if the request asks for them."""
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @model_validator(mode="after")
    def _a_text_for_each_token(self) -> Self:
        if len(self.texts) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.texts)} texts")
        if self.logprobs is not None and len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.logprobs)} logprobs")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(exclude_defaults=True)


class AcceptedEvent(StoredModel):
    """A worker tokenised and accepted the prompt. Each attempt sends it, and again with its first token if
    the prefix cache had a part of the prompt."""

    num_prompt_tokens: int
    attempt: int
    num_cached_tokens: int = 0


class EndedEvent(StoredModel):
    """The job reached a final state. ``num_tokens[c]`` is the number of tokens of choice ``c`` in the log."""

    state: JobState
    num_tokens: list[int]
    finish_reasons: list[str | None]
    error: ErrorInfo | None = None


StreamEvent = LogEntry | AcceptedEvent | EndedEvent

TOKENS: Final = "t"
ENDED: Final = "e"

EVENT_KINDS: Final[dict[str, type[LogEntry] | type[AcceptedEvent] | type[EndedEvent]]] = {
    TOKENS: LogEntry,
    "a": AcceptedEvent,
    ENDED: EndedEvent,
}


def split_events(payload: str) -> list[tuple[str, str, str]]:
    """Return the events of one PUBLISH, each as ``(job_id, kind, json)``."""
    events = []
    for line in payload.split("\n"):
        job_id, _, rest = line.partition(" ")
        kind, _, body = rest.partition(" ")
        events.append((job_id, kind, body))
    return events


def parse_event(kind: str, body: str) -> StreamEvent | None:
    """Return one event; None if its kind is unknown because a newer version sent it."""
    model = EVENT_KINDS.get(kind)
    return None if model is None else model.model_validate_json(body)


class Fingerprint(StoredModel):
    """What determines a model's output. A worker with other ``weights`` or another ``tokenizer`` must not
    continue a job; the other fields may differ."""

    weights: str
    tokenizer: str
    dtype: str
    backend: str
    version: str


class ChoiceResult(StoredModel):
    index: int = 0
    token_ids: list[int] = Field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, if the request asks for them."""
    message: ChatMessage | None = None
    """The answer of :meth:`chat` as a message that can be appended to the conversation. None in Celery's
    results and for a prompt."""

    @property
    def content(self) -> str | None:
        """The answer without reasoning and tool calls; None if it has only those."""
        if self.message is None:
            return self.text
        has_more = self.message.tool_calls or self.message.reasoning_content is not None
        return self.message.content or (None if has_more else "")

    @property
    def reasoning(self) -> str | None:
        return None if self.message is None else self.message.reasoning_content

    @property
    def tool_calls(self) -> list[ToolCall]:
        return list(self.message.tool_calls or ()) if self.message is not None else []


class JobResult(StoredModel):
    """What ``TokenStream.result()`` returns, and ``AsyncResult(job_id).get()`` as a dict.

    Times are seconds since the epoch on the server's clock; None if the job did not get that far. The
    properties are those of the first choice.
    """

    job_id: str
    model: str
    state: JobState
    choices: list[ChoiceResult]
    prompt_logprobs: list[TokenLogprobs] | None = None
    """One for each prompt token except the first, if the request asks for them."""
    prompt_token_ids: list[int] | None = None
    """If the request asks for them."""
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    """Prompt tokens that the attempt which gave the first token found in the prefix cache."""
    attempts: int = 0
    worker: str | None = None
    fingerprints: list[Fingerprint] = Field(default_factory=list)
    """The engines that computed the job, in order. More than one if an attempt had another dtype, backend or
    version than the attempt before."""
    error: ErrorInfo | None = None
    enqueued_at: float | None = None
    claimed_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def message(self) -> ChatMessage | None:
        return self.choices[0].message

    @property
    def content(self) -> str | None:
        return self.choices[0].content

    @property
    def reasoning(self) -> str | None:
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.choices[0].tool_calls


class ModelCard(StoredModel):
    """What producers need to know about a model. Its workers publish the card; it outlives them."""

    name: str
    task: Literal["generate"] = "generate"
    max_model_len: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    aliases: list[str] = Field(default_factory=list)
    max_queue_depth: int = Field(gt=0)
    max_tenant_depth: int = Field(2**31, gt=0)
    """Maximum number of choices in one tenant's open jobs of a lane."""
    max_tenant_bytes: int | None = Field(None, gt=0)
    """Maximum bytes of one tenant's requests and results. None: unlimited."""
    max_result_ttl_s: int = Field(MAX_TTL_S, gt=0)
    """Maximum of a request's ``result_ttl_s``."""
    default_sampling: SamplingDefaults = SamplingDefaults()
    """Defaults from the model's generation_config.json for parameters that a request leaves out."""
    tool_parser: str | None = None
    """How the model writes tool calls. None: the card is of a worker that did not support tools."""
    reasoning_parser: str | None = None
    """How the model writes its reasoning; None if it does not reason."""
    fingerprint: Fingerprint


class WorkerStatus(StoredModel):
    """The value of ``pf:lease:<worker>``: what a worker reports with each heartbeat."""

    worker_id: str
    model: str
    host: str
    pid: int
    started_at: float
    num_running: int = 0
    num_waiting: int = 0
    job_ids: list[str] = Field(default_factory=list, description="jobs that the worker holds")
    num_bad_messages: int = Field(0, description="unreadable messages that were dropped or dead-lettered")
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_generation_tokens: int = 0
    num_decode_steps: int = Field(0, description="steps in which at least one sequence received a token")
    last_batch_size: int = 0
    max_batch_size: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    is_draining: bool = Field(False, description="accepts no new jobs and will stop")
    lease_s: float | None = Field(None, description="seconds for which a heartbeat keeps the lease")
    generation_tok_s: float = Field(0.0, description="over the last seconds")
    ttft_p50_s: float | None = Field(
        None, description="time from submit to first token, over the last minutes"
    )
    ttft_p95_s: float | None = None
    fingerprint: Fingerprint | None = None
