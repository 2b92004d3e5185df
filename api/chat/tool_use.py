"""ToolUse: what ``tools`` and ``tool_choice`` of a request ask for, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ValidationError

from pagefleet.api.chat.errors import MissingField, UnsupportedField, refused
from pagefleet.api.chat.tool_parsers import GENERIC, NAMED, REQUIRED
from pagefleet.api.contract.chat_message import Reading, Tool, ToolFunction
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.requests import invalid_request
from pagefleet.api.contract.wire_model import WireModel

MAX_TOOLS: Final = 128
"""OpenAI's limit."""
DEMANDED: Final = ("required", "function")
"""The types of ``tool_choice`` that demand a call."""
_CHOICES: Final = ("none", "auto", *DEMANDED)


class _NamedFunction(WireModel):
    name: str


class _ToolChoice(WireModel):
    type: str
    function: _NamedFunction | None = None


def _as_object(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


class _ToolFields(WireModel):
    tools: list[Tool] | None = None
    tool_choice: Annotated[_ToolChoice | None, BeforeValidator(_as_object)] = None
    parallel_tool_calls: bool | None = None


class ToolUse:
    """The checked ``tools`` and ``tool_choice`` of a request.

    Args:
        tools: as in the request: each ``{"type": "function", "function": {"name": ..., ...}}``.
        choice: ``none``, ``auto``, ``required``, or ``{"type": "function", "function": {"name": ...}}``.
            By default ``auto`` if there are tools, else ``none``.
        parallel: whether a choice may have several calls; by default it may.

    Raises:
        InvalidRequest.
    """

    def __init__(self, tools: Any = None, choice: Any = None, parallel: Any = None) -> None:
        given = _parse(tools, choice, parallel)
        functions = [tool.function for tool in given.tools or ()]
        _check(functions)
        self.tools = {function.name: function for function in functions}
        self.parallel = given.parallel_tool_calls is not False
        self.mode = _mode(given.tool_choice, self.tools)
        """One of none, auto, required and function."""
        function = given.tool_choice.function if given.tool_choice and self.mode == "function" else None
        self.named = None if function is None else function.name
        """The function that must be called."""

    @property
    def is_demanded(self) -> bool:
        """Whether the answer must be a call."""
        return self.mode in DEMANDED

    @property
    def offered(self) -> list[dict[str, Any]] | None:
        """The tools that the model learns of; None if it must not call any."""
        if self.mode == "none":
            return None
        return [
            {"type": "function", "function": function.model_dump(exclude_none=True)}
            for function in self.tools.values()
        ]

    def reading(self, card: ModelCard, *, has_stops: bool) -> Reading | None:
        """Return how to read an answer of this model; None if all of it is content.

        Args:
            has_stops: a stop string or token may cut a call off.
        """
        parsers = {"none": None, "auto": card.tool_parser or GENERIC, "required": REQUIRED, "function": NAMED}
        parser = parsers[self.mode]
        if parser is None and card.reasoning_parser is None:
            return None
        names = list(self.tools) if self.named is None else [self.named]
        return Reading(
            tools=parser,
            reasoning=card.reasoning_parser,
            names=names if parser else [],
            parallel=self.parallel,
            whole_calls=has_stops and parser is not None,
        )


def _parse(tools: Any, choice: Any, parallel: Any) -> _ToolFields:
    """Raises: InvalidRequest."""
    if isinstance(tools, Sequence) and not isinstance(tools, str):
        tools = list(tools)
        for index, tool in enumerate(tools):
            if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
                raise refused(f"tools.{index}.type", "only function is supported", UnsupportedField)
    try:
        return _ToolFields(tools=tools, tool_choice=choice, parallel_tool_calls=parallel)
    except ValidationError as error:
        raise invalid_request(error) from None


def _check(functions: Sequence[ToolFunction]) -> None:
    """Raises: InvalidRequest."""
    if len(functions) > MAX_TOOLS:
        raise refused("tools", f"{len(functions)} tools are more than the maximum, {MAX_TOOLS}")
    seen: set[str] = set()
    for index, function in enumerate(functions):
        place, name = f"tools.{index}.function", function.name
        if name in seen:
            raise refused(f"{place}.name", f"{name!r} is also the name of another tool; rename one of them")
        seen.add(name)
        parameters = function.parameters or {}
        if parameters.get("type", "object") != "object":
            raise refused(f"{place}.parameters", 'the schema must have "type": "object"')
        if not isinstance(parameters.get("properties", {}), Mapping):
            raise refused(f"{place}.parameters.properties", "an object is required")


def _mode(choice: _ToolChoice | None, tools: Mapping[str, ToolFunction]) -> str:
    """Return one of _CHOICES. Raises: InvalidRequest."""
    if choice is None:
        return "auto" if tools else "none"
    if choice.type not in _CHOICES:
        raise refused(
            "tool_choice",
            f"{choice.type!r} is not supported; use none, auto, required or an object that names a function",
        )
    if choice.type != "none" and not tools:
        raise refused("tool_choice", f"{choice.type!r} needs tools; add tools, or remove tool_choice")
    if choice.type == "function":
        if choice.function is None:
            raise refused("tool_choice.function", "the field is required", MissingField)
        if choice.function.name not in tools:
            raise refused("tool_choice.function.name", f"{choice.function.name!r} is not one of the tools")
    return choice.type
