"""Find out from a model's chat template how the model writes tool calls and reasoning."""

from __future__ import annotations

from typing import Final

from pagefleet.api.chat.reasoning import REASONING_PARSERS
from pagefleet.api.chat.tool_parsers import GENERIC, MODEL_PARSERS

_XML_CALLS: Final = "<function="
"""Calls as XML elements, which no parser reads."""


def tool_parser_of(template: str | None) -> str:
    """Return the parser for a model with this template.

    A model whose notation is unknown gets ``json``: a system message asks it to write calls as JSON.
    """
    if template is None or "tools" not in template or _XML_CALLS in template:
        return GENERIC
    return next((name for name, parser in MODEL_PARSERS.items() if parser.is_used_by(template)), GENERIC)


def reasoning_parser_of(template: str | None) -> str | None:
    """Return the parser for the model's reasoning; None if the template has no mark of any."""
    return next(
        (name for name, parser in REASONING_PARSERS.items() if parser.is_used_by(template or "")), None
    )
