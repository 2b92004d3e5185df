"""How a model writes calls and thoughts, as far as its chat template shows it."""

from __future__ import annotations

import re
from typing import Final

JSON: Final = "json"
"""Of a model that is told of its tools in a system message: bare JSON."""
_XML_CALLS: Final = "<function="
_CALLS: Final = {
    "mistral": ("[TOOL_CALLS]",),
    "hermes": ("<tool_call>",),
    "llama3": ("<|python_tag|>", '"parameters": dictionary of argument name'),
}
_THOUGHTS: Final = ("</think>", "[/THINK]")
_OPENED: Final = re.compile(r"(<think>|\[THINK\])\s*\Z")
_CLOSING: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}


def tool_parser_of(template: str | None) -> str:
    """The parser for a model with this template; one whose notation is not known is asked for JSON."""
    if template is None or "tools" not in template or _XML_CALLS in template:
        return JSON
    return next((name for name, marks in _CALLS.items() if any(mark in template for mark in marks)), JSON)


def reasoning_parser_of(template: str | None) -> str | None:
    return "think" if any(mark in (template or "") for mark in _THOUGHTS) else None


def opened_thought(prompt: str) -> str:
    """What stands open at the end of a prompt: the model goes on within it."""
    found = _OPENED.search(prompt)
    return found[0] if found is not None else ""


def closed(opening: str) -> str:
    """What ends an opened thought without one."""
    return f"\n{_CLOSING[opening.strip()]}\n\n"
