"""A message of a conversation as a client writes it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pagefleet.api.gateway.http.body import RequestBody
from pagefleet.api.gateway.http.errors import ApiError

NOT_IN_A_MESSAGE: Final = {
    "function_call": "functions are not supported, tools are",
    "audio": "only text is read",
}
"""Without them the model would read another conversation than the one that was sent."""
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_PARTS: Final = ("text", "refusal")


class Part(RequestBody):
    """A part of a message's text."""

    type: str
    text: str | None = None
    refusal: str | None = None


def _as_parts(content: Any) -> Any:
    """A text, or parts that are text; an assistant's turn may have none."""
    if not isinstance(content, list):
        return "" if content is None else content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PARTS or not isinstance(part.get(kind), str):
            raise PydanticCustomError("content", "only parts of the type text are supported")
    return [Part.model_validate(part) for part in content]


class CalledFunction(RequestBody):
    name: str = Field(min_length=1, max_length=1024)
    arguments: str = Field("{}", description="JSON; as it came where the model broke off")


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
    reasoning_content: str | None = Field(None, description="what an assistant thought")

    def told(self, place: str) -> dict[str, Any]:
        """As a job has it.

        Args:
            place: where it stands in the body, with a dot behind it.

        Raises:
            ApiError: a call that nobody may make, or a result of none.
        """
        if self.role not in _ROLES:
            raise _refused(f"{place}role", f"`{self.role}` is not one of {', '.join(_ROLES)}")
        if self.role == "tool" and self.tool_call_id is None:
            raise _refused(f"{place}tool_call_id", "it is missing", "missing_required_parameter")
        if self.tool_call_id is not None and self.role != "tool":
            raise _refused(f"{place}tool_call_id", "only a message of the role tool has one")
        if self.tool_calls and self.role != "assistant":
            raise _refused(f"{place}tool_calls", "only a message of the role assistant has any")
        told = {
            "role": self.role,
            "content": self._text(),
            "name": self.name,
            "tool_calls": self._calls(place),
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
        }
        return {name: value for name, value in told.items() if value is not None}

    def _text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join((part.text if part.type == "text" else part.refusal) or "" for part in self.content)

    def _calls(self, place: str) -> list[dict[str, Any]] | None:
        for index, call in enumerate(self.tool_calls or ()):
            if call.type != "function":
                param = f"{place}tool_calls[{index}].type"
                raise _refused(param, "only function is supported", "unsupported_parameter")
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in self.tool_calls or ()
        ] or None


def _refused(param: str, reason: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {reason}.", param=param, code=code)
