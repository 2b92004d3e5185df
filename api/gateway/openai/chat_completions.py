"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from pagefleet.api.chat.chat_request import TOOL_FIELDS, chat_fields
from pagefleet.api.chat.choice_reader import ChoiceReader
from pagefleet.api.chat.message_reader import with_message
from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.chat_message import Reading
from pagefleet.api.contract.messages import ChoiceResult, JobResult, ModelCard
from pagefleet.api.gateway.answers.answer import start
from pagefleet.api.gateway.answers.generation_body import GenerationBody, StreamOptions
from pagefleet.api.gateway.answers.shape import Shape, fingerprint_text, finish_fields
from pagefleet.api.gateway.context import caller_of
from pagefleet.api.gateway.http.body import read_body, refuse
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.gateway.openai.chat_message import NOT_IN_A_MESSAGE, Message
from pagefleet.api.gateway.openai.logprobs import chat_logprobs, prompt_fields
from pagefleet.api.gateway.openai.tools import Choice, ToolBody

PREFIX: Final = "chatcmpl"
_UNSUPPORTED: Final = {
    "functions": "not supported; use tools",
    "function_call": "not supported; use tool_choice",
    "audio": "not supported; only text is generated",
    "web_search_options": "not supported",
}
_TEMPLATES_OWN: Final = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call in each choice")
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="variables of the model's chat template, for example enable_thinking"
    )

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def _has_format(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def names(self) -> Mapping[str, str]:
        own = {"prompt": "messages"}
        if self.top_logprobs is not None:
            own["logprobs"] = "top_logprobs"
        if self.max_completion_tokens is not None:
            own["max_tokens"] = "max_completion_tokens"
        return {**super().names, **own}

    def job_fields(self, card: ModelCard) -> dict[str, Any]:
        fields = super().job_fields(card)
        fields.pop("logprobs", None)
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise ApiError(
                400, "top_logprobs: requires `logprobs: true`.", param="top_logprobs", code="invalid_value"
            )
        fields["messages"] = [each.job_message(index) for index, each in enumerate(self.messages)]
        if self.chat_template_kwargs:
            fields["chat_template_kwargs"] = self._variables(self.chat_template_kwargs)
        if self._has_format and self.tool_choice is not None and self.tool_choice.is_demand:
            # The answer will be a call, which a format of its text does not concern.
            fields.pop("structured_outputs", None)
        return chat_fields({**fields, **self._tool_options()}, card)

    def _variables(self, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Raises: ApiError: the template sets this variable itself."""
        for name in given.keys() & _TEMPLATES_OWN:
            param = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{param}: set by the gateway; remove it.", param=param, code="invalid_value")
        return given

    def _tool_options(self) -> dict[str, Any]:
        tools = None if self.tools is None else [tool.known() for tool in self.tools]
        choice = None if self.tool_choice is None else self.tool_choice.known()
        return dict(zip(TOOL_FIELDS, (tools, choice, self.parallel_tool_calls), strict=True))


@dataclass(frozen=True, slots=True)
class ChatShape(Shape):
    reading: Reading | None = None

    chunk_object: ClassVar[str] = "chat.completion.chunk"
    whole_object: ClassVar[str] = "chat.completion"

    def reader(self, choice: int) -> ChoiceReader | None:
        return None if self.reading is None else ChoiceReader(self.reading, self.answer_id, choice)

    def opening(self, choice: int) -> dict[str, Any]:
        return _chunk_choice(choice, {"role": "assistant", "content": ""})

    def tokens(self, choice: int, chunk: Chunk, delta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        fields = _chunk_choice(choice, {"content": chunk.text} if delta is None else delta)
        if chunk.logprobs is not None:
            fields["logprobs"] = chat_logprobs(chunk.logprobs)
        if self.wants_token_ids:
            fields["token_ids"] = chunk.token_ids
        return fields

    def rest(self, choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        return _chunk_choice(choice, delta)

    def finish(self, choice: int) -> dict[str, Any]:
        return _chunk_choice(choice, {})

    def of_prompt(self, source: Chunk | JobResult) -> dict[str, Any]:
        return prompt_fields(source)

    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        result = with_message(result, self.reading or Reading(), self.answer_id)
        fields = {
            "index": choice,
            "message": _message(result),
            "logprobs": None if result.logprobs is None else chat_logprobs(result.logprobs),
            **finish_fields(result.finish_reason, result.stop_reason),
        }
        if self.wants_token_ids:
            fields["token_ids"] = result.token_ids
        return fields


def _message(result: ChoiceResult) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": result.content, "refusal": None}
    if result.reasoning is not None:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["tool_calls"] = [call.model_dump() for call in result.tool_calls]
    return message


def _chunk_choice(choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


async def create(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, ChatBody, gateway.settings)
    refuse(body, _UNSUPPORTED)
    body.check()
    for index, message in enumerate(body.messages):
        refuse(message, NOT_IN_A_MESSAGE, f"messages[{index}].")
    answer, card = await start(gateway, key, body, [{}], PREFIX, default_max_tokens=None)
    shape = ChatShape(
        answer.answer_id,
        card.name,
        wants_token_ids=bool(body.return_token_ids),
        fingerprint=fingerprint_text(card.fingerprint),
        names=body.names,
        reading=answer.reading,
    )
    if body.stream:
        return answer.stream(shape, body.stream_options or StreamOptions())
    if body.background:
        return await answer.later()
    return await answer.whole(request, shape)
