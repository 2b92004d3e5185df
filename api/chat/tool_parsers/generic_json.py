"""Any model that a system message asks for JSON: the text starts with calls, bare, fenced or tagged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pagefleet.api.chat.tool_parsers.call_reader import CallReader


class GenericJsonReader(CallReader):
    special_tokens: ClassVar[tuple[str, ...]] = ("<tool_call>", "</tool_call>")
    openings: ClassVar[tuple[str, ...]] = ("```", "<tool_call>")

    def _read(self) -> Iterator[None]:
        if (yield from self._bare_calls()):
            yield from self._pass_until()
