"""A conversation on the wire: messages, the tools they may call, and how the answer's text is to be read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pagefleet.api.contract.wire_model import StoredModel, WireModel

ToolName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:/-]+$")]


class FunctionCall(WireModel):
    name: str = Field(min_length=1, max_length=1024)
    arguments: str = "{}"
    """JSON, as the model wrote it: perhaps broken."""


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
    """How to tell content, reasoning and calls in a text. Whoever submits a job writes it down: whoever shows
    the answer, and whenever, reads it the same way."""

    tools: str | None = None
    """A parser's name; None: calls are text like any other."""
    reasoning: str | None = None
    names: list[str] = Field(default_factory=list)
    """Of the tools."""
    parallel: bool = True
    """False: only a choice's first call counts."""
    whole_calls: bool = False
    """A call is passed on once it is complete: a stop string may cut it off, and what is cut off is text."""
