"""The answers of the gateway as pydantic models, from which ``/openapi.json`` gets their JSON schemas.

The gateway builds its answers as dictionaries, because a model for each token would cost too much;
tests/gateway/test_openapi.py compares real answers with these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue

Count = Annotated[int, Field(ge=0)]
_Object = dict[str, Any]
_Ids = list[Count]
_PromptLogprobs = list[_Object | None]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the parameter that is wrong")
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


class CachedTokens(BaseModel):
    cached_tokens: Count = Field(description="tokens of the prompt that the prefix cache had")


class Usage(BaseModel):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: CachedTokens


class _Choice(BaseModel):
    index: Count
    logprobs: _Object | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: str | int | None
    token_ids: _Ids = Field(default_factory=list)


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[_Object] = Field(default_factory=list)
    reasoning_content: str | None = None


class ChatChoice(_Choice):
    message: AssistantMessage


class TextChoice(_Choice):
    text: str
    prompt_token_ids: _Ids = Field(default_factory=list)
    prompt_logprobs: _PromptLogprobs = Field(default_factory=list)


class _Completion(BaseModel):
    id: str
    created: Count
    model: str
    system_fingerprint: str | None
    usage: Usage


class ChatCompletion(_Completion):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: _Ids = Field(default_factory=list)
    prompt_logprobs: _PromptLogprobs = Field(default_factory=list)


class Completion(_Completion):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    root: str
    max_model_len: Count
    aliases: list[str]
    ready: bool = Field(description="whether a worker serves the model now")


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]


class _Job(BaseModel):
    id: str
    object: Literal["job"]


class Queued(_Job):
    status: Literal["queued"]


class ListedJob(_Job):
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    created: Count
    model: str
    lane: Literal["interactive", "batch"]
    attempts: Count
    usage: Usage
    enqueued_at: float | None
    claimed_at: float | None
    first_token_at: float | None
    ended_at: float | None
    error: _Object | None


class Job(ListedJob):
    result: dict[str, JsonValue] | None = Field(None, description="the completion, after the job has ended")


class Jobs(BaseModel):
    object: Literal["list"]
    data: list[ListedJob]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(_Job):
    deleted: Literal[True]


class Tokens(BaseModel):
    count: Count
    max_model_len: Count
    tokens: _Ids
    token_strs: list[str] | None


class Prompt(BaseModel):
    prompt: str


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready"]
    models: Count


class NotReady(BaseModel):
    status: Literal["not ready"]
    reason: str


ANSWERS: tuple[type[BaseModel], ...] = (
    *(Error, ChatCompletion, Completion, Model, Models, Queued, Job, Jobs, Deleted),
    *(Tokens, Prompt, Health, Ready, NotReady),
)
