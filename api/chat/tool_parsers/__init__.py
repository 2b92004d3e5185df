"""How models write calls of tools, one file each: texts alone, no tokens. All are :class:`TextReader`."""

from __future__ import annotations

from typing import Final

from pagefleet.api.chat.tool_parsers.demanded import NamedReader, RequiredReader
from pagefleet.api.chat.tool_parsers.generic_json import GenericJsonReader
from pagefleet.api.chat.tool_parsers.hermes import HermesReader
from pagefleet.api.chat.tool_parsers.llama3 import Llama3Reader
from pagefleet.api.chat.tool_parsers.mistral import MistralReader
from pagefleet.api.chat.tool_parsers.text_reader import TextReader

__all__ = ["GENERIC", "NAMED", "REQUIRED", "TOOL_PARSERS", "TextReader"]

GENERIC: Final = "json"
NAMED: Final = "named"
REQUIRED: Final = "required"
TOOL_PARSERS: Final[dict[str, type[TextReader]]] = {
    "hermes": HermesReader,
    "llama3": Llama3Reader,
    "mistral": MistralReader,
    GENERIC: GenericJsonReader,
    NAMED: NamedReader,
    REQUIRED: RequiredReader,
}
"""By the names that model cards and jobs have for them."""
