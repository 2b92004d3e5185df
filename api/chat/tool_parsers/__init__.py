"""How models write tool calls: one notation a file, each a subclass of :class:`TextReader`.

They read text, not tokens. A new notation needs its file and a line in ``MODEL_PARSERS``.
"""

from __future__ import annotations

from typing import Final, Literal

from pagefleet.api.chat.tool_parsers.demanded import NamedReader, RequiredReader
from pagefleet.api.chat.tool_parsers.generic_json import GenericJsonReader
from pagefleet.api.chat.tool_parsers.hermes import HermesReader
from pagefleet.api.chat.tool_parsers.llama3 import Llama3Reader
from pagefleet.api.chat.tool_parsers.mistral import MistralReader
from pagefleet.api.chat.tool_parsers.text_reader import TextReader

__all__ = [
    "GENERIC",
    "MODEL_PARSERS",
    "NAMED",
    "REQUIRED",
    "TOOL_PARSERS",
    "TextReader",
    "ToolParserName",
]

ToolParserName = Literal["hermes", "llama3", "mistral", "json"]
"""The notations that a model can have; the choices of ``--tool-parser``."""

GENERIC: Final = "json"
NAMED: Final = "named"
REQUIRED: Final = "required"
MODEL_PARSERS: Final[dict[str, type[TextReader]]] = {
    "mistral": MistralReader,
    "hermes": HermesReader,
    "llama3": Llama3Reader,
    GENERIC: GenericJsonReader,
}
"""In the order in which a chat template is searched for their marks."""
TOOL_PARSERS: Final[dict[str, type[TextReader]]] = {
    **MODEL_PARSERS,
    NAMED: NamedReader,
    REQUIRED: RequiredReader,
}
"""All parsers by the names that model cards and jobs use."""
