"""JSON schemas of tool calls: what constrains a text that must be a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pagefleet.api.chat.schema_refs import moved
from pagefleet.api.chat.tool_use import ToolUse
from pagefleet.api.contract.chat_message import ToolFunction

FORMAT: Final = "$response_format"
"""The key in ``$defs`` for the schema of an answer in words; no tool can have this name."""


def demanded_call(use: ToolUse) -> dict[str, Any] | None:
    """Return the structured output of an answer that must be a call; None if it need not be one.

    It winds down, so that the call is complete at ``max_tokens``.
    """
    if not use.is_demanded:
        return None
    schema = _calls(use.tools, use.parallel) if use.named is None else _arguments(use.tools[use.named])
    return {"json_schema": schema, "wind_down": True}


def call_or_format(use: ToolUse, schema: Any) -> dict[str, Any]:
    """Return the structured output of an answer that is either calls or JSON of a schema, as the model likes.

    The calls are bare JSON, which the parsers of all notations read.
    """
    calls = _calls(use.tools, use.parallel)
    several = [{key: value for key, value in calls.items() if key != "$defs"}] if use.parallel else []
    return {
        "json_schema": {
            "anyOf": [*calls["items"]["anyOf"], *several, {"$ref": f"#/$defs/{FORMAT}"}],
            "$defs": {**calls["$defs"], FORMAT: moved(schema, f"#/$defs/{FORMAT}")},
        }
    }


def _arguments(function: ToolFunction) -> dict[str, Any]:
    return {"type": "object", "properties": {}, **(function.parameters or {})}


def _calls(tools: Mapping[str, ToolFunction], parallel: bool) -> dict[str, Any]:
    """Return the schema of a list of calls."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{_pointer(name)}"}},
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
            name: moved(_arguments(function), f"#/$defs/{_pointer(name)}") for name, function in tools.items()
        },
    }
    return schema if parallel else {**schema, "maxItems": 1}


def _pointer(name: str) -> str:
    """Escape a name for a JSON pointer; names have no ``~``."""
    return name.replace("/", "~1")
