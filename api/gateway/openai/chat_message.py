"""A message of a conversation as a request's body has it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pagefleet.api.chat.chat_messages import are_text, check_tool_fields, joined_parts
from pagefleet.api.chat.errors import refused
from pagefleet.api.gateway.http.body import RequestBody

NOT_IN_A_MESSAGE: Final = {
    "function_call": "function_call is not supported; use tool_calls",
    "audio": "only text is supported",
}
"""Fields that cannot be ignored: the model would read a different conversation."""
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")


class Part(RequestBody):
    """A part of a message's text."""

    type: str
    text: str | None = None
    refusal: str | None = None


def _as_parts(content: Any) -> Any:
    """Accept a text or parts that are text; an assistant's message may have neither."""
    if not isinstance(content, list):
        return "" if content is None else content
    if not are_text(content):
        raise PydanticCustomError("content", "only parts of the types text and refusal are supported")
    return [Part.model_validate(part) for part in content]


class CalledFunction(RequestBody):
    name: str = Field(min_length=1, max_length=1024)
    arguments: str = Field("{}", description="JSON; may be incomplete if the model broke off")


class MessageCall(RequestBody):
    id: str = Field(min_length=1, max_length=256)
    type: str = "function"
    function: CalledFunction


class Message(RequestBody):
    role: str = Field(min_length=1, max_length=64, json_schema_extra={"enum": [*_ROLES]})
    content: Annotated[
        list[Part] | str, BeforeValidator(_as_parts, json_schema_input_type=str | list[Part] | None)
    ] = ""
    name: str | None = None
    tool_calls: list[MessageCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(None, description="an assistant's reasoning")

    def job_message(self, index: int) -> dict[str, Any]:
        """Return the message as a job has it.

        Args:
            index: its place in the conversation, for errors.

        Raises:
            InvalidRequest: an unknown role, or tool fields in the wrong message.
        """
        place = f"messages.{index}"
        if self.role not in _ROLES:
            raise refused(f"{place}.role", f"{self.role!r} is not one of {', '.join(_ROLES)}")
        fields = {
            "role": self.role,
            "content": self.content if isinstance(self.content, str) else _text(self.content),
            "name": self.name,
            "tool_calls": [_call(call) for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
        }
        check_tool_fields(fields, place)
        return {name: value for name, value in fields.items() if value is not None}


def _text(parts: list[Part]) -> str:
    return joined_parts(part.model_dump() for part in parts)


def _call(call: MessageCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type, "function": function}
