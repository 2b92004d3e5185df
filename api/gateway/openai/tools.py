"""``tools`` and ``tool_choice`` in a request's body; :mod:`pagefleet.api.chat.tool_use` checks them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue

from pagefleet.api.chat.tool_use import DEMANDED
from pagefleet.api.gateway.http.body import RequestBody


class Function(RequestBody):
    name: str = Field(max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="a JSON schema of the type object")
    strict: bool | None = Field(None, description="calls that tool_choice demands always keep the schema")


class ToolBody(RequestBody):
    type: str
    function: Function

    def known(self) -> dict[str, Any]:
        """The tool without fields that are not OpenAI's."""
        function = self.function.model_dump(include=set(Function.model_fields), exclude_none=True)
        return {"type": self.type, "function": function}


class NamedFunction(RequestBody):
    name: str


class ToolChoice(RequestBody):
    type: str
    function: NamedFunction | None = None

    @property
    def is_demand(self) -> bool:
        """Whether the answer must be a call."""
        return self.type in DEMANDED

    def known(self) -> dict[str, Any]:
        function = None if self.function is None else {"name": self.function.name}
        return {"type": self.type, "function": function}


def _as_object(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Choice = Annotated[
    ToolChoice, BeforeValidator(_as_object, json_schema_input_type=str | dict[str, str | dict[str, str]])
]
