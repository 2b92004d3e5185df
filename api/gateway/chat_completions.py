"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from pagefleet.api.gateway.answer import start
from pagefleet.api.gateway.body import RequestBody, read_body, refuse
from pagefleet.api.gateway.context import who_asks
from pagefleet.api.gateway.errors import ApiError
from pagefleet.api.gateway.generation_body import GenerationBody
from pagefleet.api.gateway.logprobs import chat_logprobs, prompt_logprobs
from pagefleet.api.gateway.shape import Shape, finish_fields
from pagefleet.api.messages import ChoiceResult, JobResult
from pagefleet.api.stream import Chunk

PREFIX: Final = "chatcmpl"
_NOT_HERE: Final = {
    "tools": "tools are not supported",
    "functions": "functions are not supported",
    "audio": "only text is generated",
    "web_search_options": "there is no web search",
}
_NOT_IN_A_MESSAGE: Final = dict.fromkeys(
    ("tool_calls", "tool_call_id", "function_call"), "tools are not supported"
)
"""Without them the model would read another conversation than the one that was sent."""


def _as_text(content: Any) -> Any:
    """Parts of text as one text; an assistant's turn may have none."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
            raise PydanticCustomError("content", "only parts of the type text are supported")
        texts.append(part[kind])
    return "".join(texts)


class Message(RequestBody):
    role: str = Field(min_length=1, max_length=64)
    content: Annotated[
        str, BeforeValidator(_as_text, json_schema_input_type=str | list[dict[str, str]] | None)
    ] = ""
    name: str | None = None


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def job_fields(self) -> dict[str, Any]:
        fields = super().job_fields()
        fields.pop("logprobs", None)
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise ApiError(
                400, "top_logprobs: logprobs must be true for it.", param="top_logprobs", code="invalid_value"
            )
        messages = [{"role": each.role, "content": each.content, "name": each.name} for each in self.messages]
        fields["messages"] = [{k: v for k, v in each.items() if v is not None} for each in messages]
        return fields


class ChatShape(Shape):
    __slots__ = ()
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    whole_object: ClassVar[str] = "chat.completion"

    def opening(self, choice: int) -> dict[str, Any]:
        return _chunk_choice(choice, {"role": "assistant", "content": ""})

    def tokens(self, choice: int, chunk: Chunk) -> dict[str, Any]:
        said = _chunk_choice(choice, {"content": chunk.text})
        if chunk.logprobs is not None:
            said["logprobs"] = chat_logprobs(chunk.logprobs)
        if self.wants_token_ids:
            said["token_ids"] = chunk.token_ids
        if chunk.prompt_logprobs is not None:
            said["prompt_logprobs"] = prompt_logprobs(chunk.prompt_logprobs)
        return said

    def finish(self, choice: int, reason: str | None, stop_reason: str | int | None) -> dict[str, Any]:
        return {**_chunk_choice(choice, {}), **finish_fields(reason, stop_reason)}

    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        said = {
            "index": choice,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": None if result.logprobs is None else chat_logprobs(result.logprobs),
            **finish_fields(result.finish_reason, result.stop_reason),
        }
        if self.wants_token_ids:
            said["token_ids"] = result.token_ids
        if job.prompt_logprobs is not None:
            said["prompt_logprobs"] = prompt_logprobs(job.prompt_logprobs)
        return said


def _chunk_choice(choice: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


async def create(request: Request) -> Response:
    gateway, key = who_asks(request)
    body = await read_body(request, ChatBody, gateway.settings)
    refuse(body, _NOT_HERE)
    for index, message in enumerate(body.messages):
        refuse(message, _NOT_IN_A_MESSAGE, f"messages[{index}].")
    answer, card = await start(gateway, key, body, [{}], PREFIX, default_max_tokens=None)
    shape = ChatShape(answer.answer_id, card.name, wants_token_ids=bool(body.return_token_ids))
    if body.stream:
        return answer.stream(shape, include_usage=body.includes_usage)
    if body.background:
        return await answer.later()
    return await answer.whole(request, shape)
