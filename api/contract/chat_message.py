"""A conversation on the wire: its messages, the tools, and how to read the answer's text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pagefleet.api.contract.wire_model import StoredModel, WireModel

ToolName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")]


class FunctionCall(WireModel):
    name: str = Field(min_length=1, max_length=1024)
    arguments: str = "{}"
    """JSON as the model wrote it; it may be invalid or incomplete."""


class ToolCall(WireModel):
    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(WireModel):
    role: str = Field(min_length=1, max_length=64)
    content: str
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ToolFunction(WireModel):
    name: ToolName
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(WireModel):
    type: Literal["function"] = "function"
    function: ToolFunction


class Reading(StoredModel):
    """How to separate content, reasoning and tool calls in an answer's text.

    The producer stores it with the job, so that every reader of the answer gets the same message.
    """

    tools: str | None = None
    """The parser's name; None if calls are part of the content."""
    reasoning: str | None = None
    """The parser's name; None if reasoning is part of the content."""
    names: list[str] = Field(default_factory=list)
    """The names of the tools."""
    parallel: bool = True
    """False: calls after a choice's first one are ignored."""
    whole_calls: bool = False
    """Pass a call on when it is complete. A stop string may cut a call off, which then is content."""
