"""``tools`` and ``tool_choice``: what they ask of a job, and how its text is then read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, JsonValue

from pagefleet.api.chat.schema_refs import moved
from pagefleet.api.chat.tool_parsers import GENERIC, NAMED, REQUIRED
from pagefleet.api.contract.chat_message import Reading
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.gateway.http.body import RequestBody
from pagefleet.api.gateway.http.errors import ApiError

MAX_TOOLS: Final = 128
"""OpenAI's limit."""
_CHOICES: Final = ("none", "auto", "required", "function")
FORMAT: Final = "$response_format"
"""The format's place beside those of the tools, which have no such names."""


class Function(RequestBody):
    name: str = Field(max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="a JSON schema of the type object")
    strict: bool | None = Field(None, description="calls that tool_choice demands always keep the schema")


class ToolBody(RequestBody):
    type: str
    function: Function


class NamedFunction(RequestBody):
    name: str


class ToolChoice(RequestBody):
    type: str
    function: NamedFunction | None = None


def _as_object(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


Choice = Annotated[
    ToolChoice, BeforeValidator(_as_object, json_schema_input_type=str | dict[str, str | dict[str, str]])
]


class ToolUse:
    """
    Args:
        choice: None is OpenAI's default: auto where there are tools.

    Raises:
        ApiError: tools that can't be, or a choice that isn't among them.
    """

    def __init__(self, tools: Sequence[ToolBody] | None, choice: ToolChoice | None) -> None:
        _check(tools or ())
        self.tools = {tool.function.name: tool.function for tool in tools or ()}
        self.mode = _mode(choice, self.tools)
        function = None if choice is None or self.mode != "function" else choice.function
        self.named = None if function is None else function.name

    @property
    def is_demanded(self) -> bool:
        return self.mode in ("required", "function")

    def reading(self, card: ModelCard, parallel: bool, has_stops: bool) -> Reading | None:
        """How an answer of this model is to be read; None: all of it is content."""
        parsers = {"none": None, "auto": card.tool_parser or GENERIC, "required": REQUIRED, "function": NAMED}
        parser = parsers[self.mode]
        if parser is None and card.reasoning_parser is None:
            return None
        names = list(self.tools) if self.named is None else [self.named]
        return Reading(
            tools=parser,
            reasoning=card.reasoning_parser,
            names=names if parser else [],
            parallel=parallel,
            whole_calls=has_stops and parser is not None,
        )

    def told(self) -> list[dict[str, Any]] | None:
        """What the model is told of them."""
        if self.mode == "none":
            return None
        return [{"type": "function", "function": _known(function)} for function in self.tools.values()]

    def beside_format(self, schema: Any, parallel: bool) -> dict[str, Any]:
        """What the whole text must be, where the model chooses between calls and an answer of this form.
        Calls are bare JSON, which is read whatever the model's notation is."""
        calls = _any_calls(self.tools, parallel)
        options = [*calls["items"]["anyOf"], *([{k: v for k, v in calls.items() if k != "$defs"}] * parallel)]
        return {
            "json_schema": {
                "anyOf": [*options, {"$ref": f"#/$defs/{FORMAT}"}],
                "$defs": {**calls["$defs"], FORMAT: moved(schema, f"#/$defs/{FORMAT}")},
            }
        }

    def grammar(self, parallel: bool) -> dict[str, Any] | None:
        """What the whole text must be, where a call is demanded: it ends in time, so that it parses."""
        if not self.is_demanded:
            return None
        schema = _any_calls(self.tools, parallel) if self.named is None else _schema(self.tools[self.named])
        return {"json_schema": schema, "wind_down": True}


def _check(tools: Sequence[ToolBody]) -> None:
    if len(tools) > MAX_TOOLS:
        raise _refused("tools", f"{MAX_TOOLS} at most")
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if tool.type != "function":
            raise _refused(f"{place}.type", "only function is supported", "unsupported_parameter")
        if tool.function.name in seen:
            raise _refused(f"{place}.function.name", "another tool has this name")
        seen.add(tool.function.name)
        parameters = tool.function.parameters or {}
        if parameters.get("type", "object") != "object":
            raise _refused(f"{place}.function.parameters", "a schema of the type object is needed")
        if not isinstance(parameters.get("properties", {}), Mapping):
            raise _refused(f"{place}.function.parameters.properties", "an object is needed")


def _mode(choice: ToolChoice | None, tools: Mapping[str, Function]) -> str:
    """One of _CHOICES. Raises: ApiError."""
    if choice is None:
        return "auto" if tools else "none"
    if choice.type not in _CHOICES:
        raise _refused("tool_choice", "use none, auto, required, or an object that names a function")
    if choice.type != "none" and not tools:
        raise _refused("tool_choice", "it needs tools; leave it out, or give some")
    if choice.type == "function" and choice.function is None:
        raise _refused("tool_choice.function", "it is missing", "missing_required_parameter")
    if choice.type == "function" and choice.function is not None and choice.function.name not in tools:
        raise _refused("tool_choice.function.name", "no tool has this name")
    return choice.type


def _known(function: Function) -> dict[str, Any]:
    """Without what nobody knows."""
    return function.model_dump(include=set(Function.model_fields), exclude_none=True)


def _schema(function: Function) -> dict[str, Any]:
    """Of its arguments."""
    return {"type": "object", "properties": {}, **(function.parameters or {})}


def _any_calls(tools: Mapping[str, Function], parallel: bool) -> dict[str, Any]:
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "arguments": {"$ref": f"#/$defs/{_pointer(name)}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in tools
    ]
    schema: dict[str, Any] = {
        "type": "array",
        "items": {"anyOf": calls},
        "minItems": 1,
        "$defs": {
            name: moved(_schema(function), f"#/$defs/{_pointer(name)}") for name, function in tools.items()
        },
    }
    return schema if parallel else {**schema, "maxItems": 1}


def _pointer(name: str) -> str:
    return name.replace("/", "~1")


def _refused(param: str, reason: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{param}: {reason}.", param=param, code=code)
