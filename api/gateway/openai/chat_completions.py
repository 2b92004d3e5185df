"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn

from pydantic import Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from pagefleet.api.chat.choice_reader import ChoiceReader, joined, special_tokens
from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.chat_message import Reading
from pagefleet.api.contract.messages import ChoiceResult, JobResult, ModelCard
from pagefleet.api.gateway.answers.answer import start
from pagefleet.api.gateway.answers.generation_body import GenerationBody, StreamOptions
from pagefleet.api.gateway.answers.shape import Shape, fingerprint_text, finish_fields
from pagefleet.api.gateway.context import who_asks
from pagefleet.api.gateway.http.body import read_body, refuse
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.gateway.openai.chat_message import NOT_IN_A_MESSAGE, Message
from pagefleet.api.gateway.openai.logprobs import chat_logprobs, prompt_fields
from pagefleet.api.gateway.openai.tools import Choice, ToolBody, ToolUse

PREFIX: Final = "chatcmpl"
_NOT_HERE: Final = {
    "functions": "functions are not supported, tools are",
    "function_call": "function_call is not supported, tool_choice is",
    "audio": "only text is generated",
    "web_search_options": "there is no web search",
}
_TEMPLATES_OWN: Final = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call in each choice at most")
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="variables of the model's chat template, as enable_thinking"
    )

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def names(self) -> Mapping[str, str]:
        own = {"prompt": "messages"}
        if self.top_logprobs is not None:
            own["logprobs"] = "top_logprobs"
        if self.max_completion_tokens is not None:
            own["max_tokens"] = "max_completion_tokens"
        return {**super().names, **own}

    def reading(self, card: ModelCard) -> Reading | None:
        """How this model's answer is to be read. Raises: ApiError."""
        has_stops = bool(self.stop or self.stop_token_ids)
        return ToolUse(self.tools, self.tool_choice).reading(
            card, self.parallel_tool_calls is not False, has_stops
        )

    def job_fields(self, card: ModelCard) -> dict[str, Any]:
        fields = super().job_fields(card)
        fields.pop("logprobs", None)
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs is not None:
            raise ApiError(
                400, "top_logprobs: logprobs must be true for it.", param="top_logprobs", code="invalid_value"
            )
        fields["messages"] = [each.told(f"messages[{index}].") for index, each in enumerate(self.messages)]
        if self.chat_template_kwargs:
            fields["chat_template_kwargs"] = self._variables(self.chat_template_kwargs)
        return {**fields, **self._tool_fields(card, fields.get("structured_outputs"))}

    def _variables(self, given: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Raises: ApiError: one that would be passed over."""
        for name in given.keys() & _TEMPLATES_OWN:
            param = f"chat_template_kwargs.{name}"
            raise ApiError(400, f"{param}: it is the template's own.", param=param, code="invalid_value")
        return given

    def _tool_fields(self, card: ModelCard, structured: Any) -> dict[str, Any]:
        """Raises: ApiError."""
        use = ToolUse(self.tools, self.tool_choice)
        parallel = self.parallel_tool_calls is not False
        beside: Any = None
        if use.mode == "auto" and structured is not None:
            beside = _beside_tools(self, use, structured, parallel)
        if use.is_demanded and structured is not None and not _has_format(self):
            _refuse_beside_tools(self, "the answer will be a call")
        fields: dict[str, Any] = {"tools": use.told(), "reading": self.reading(card)}
        if fields["reading"] is not None:
            kept = self.kept_special_tokens or ()
            fields["kept_special_tokens"] = [*kept, *special_tokens(fields["reading"])]
        # Where a call is demanded a format is of what is said in words, and nothing is.
        if (grammar := beside or use.grammar(parallel)) is not None:
            fields["structured_outputs"] = grammar
        return {name: value for name, value in fields.items() if value is not None}


def _beside_tools(
    body: ChatBody, use: ToolUse, structured: Mapping[str, Any], parallel: bool
) -> dict[str, Any]:
    """A call, or an answer of this form. Raises: ApiError."""
    if structured.get("json_object"):
        schema: Any = {"type": "object"}
    elif "json_schema" in structured:
        schema = structured["json_schema"]
    else:
        _refuse_beside_tools(body, "beside tool_choice auto only a JSON schema is supported")
    kept = {name: structured[name] for name in ("wind_down",) if name in structured}
    return {**use.beside_format(schema, parallel), **kept}


def _has_format(body: ChatBody) -> bool:
    return body.response_format is not None and body.response_format.type != "text"


def _refuse_beside_tools(body: ChatBody, reason: str) -> NoReturn:
    others = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
    given = (name for name in others if getattr(body, name) is not None)
    param = "response_format" if _has_format(body) else next(given)
    raise ApiError(400, f"{param}: not beside these tools: {reason}.", param=param, code="invalid_value")


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
        said = _chunk_choice(choice, {"content": chunk.text} if delta is None else delta)
        if chunk.logprobs is not None:
            said["logprobs"] = chat_logprobs(chunk.logprobs)
        if self.wants_token_ids:
            said["token_ids"] = chunk.token_ids
        return said

    def rest(self, choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        return _chunk_choice(choice, delta)

    def finish(self, choice: int) -> dict[str, Any]:
        return _chunk_choice(choice, {})

    def of_prompt(self, told: Chunk | JobResult) -> dict[str, Any]:
        return prompt_fields(told)

    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        message, reason = self._message(choice, result)
        said = {
            "index": choice,
            "message": message,
            "logprobs": None if result.logprobs is None else chat_logprobs(result.logprobs),
            **finish_fields(reason, result.stop_reason),
        }
        if self.wants_token_ids:
            said["token_ids"] = result.token_ids
        return said

    def _message(self, choice: int, result: ChoiceResult) -> tuple[dict[str, Any], str | None]:
        """What was said, and why it ended."""
        if self.reading is None:
            return {"role": "assistant", "content": result.text, "refusal": None}, result.finish_reason
        # A call that broke off where the text says that it ended is none.
        whole_calls = self.reading.whole_calls or result.finish_reason == "stop"
        reading = self.reading.model_copy(update={"whole_calls": whole_calls})
        reader = ChoiceReader(reading, self.answer_id, choice)
        message = {"role": "assistant", "content": None, "refusal": None}
        message |= joined([reader.feed(result.text), reader.end()])
        if "tool_calls" not in message and "reasoning_content" not in message:
            message["content"] = message["content"] or ""
        return message, reader.finish_reason(result.finish_reason)


def _chunk_choice(choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}


async def create(request: Request) -> Response:
    gateway, key = who_asks(request)
    body = await read_body(request, ChatBody, gateway.settings)
    refuse(body, _NOT_HERE)
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
        reading=body.reading(card),
    )
    if body.stream:
        return answer.stream(shape, body.stream_options or StreamOptions())
    if body.background:
        return await answer.later()
    return await answer.whole(request, shape)
