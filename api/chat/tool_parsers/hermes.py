"""Hermes and Qwen: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, any number of times anywhere
in the text; or the same JSON without tags as the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from pagefleet.api.chat.tool_parsers.call_reader import CallReader
from pagefleet.api.chat.tool_parsers.text_reader import Kind

_OPEN: Final = "<tool_call>"
_CLOSE: Final = "</tool_call>"


class HermesReader(CallReader):
    special_tokens: ClassVar[tuple[str, ...]] = (_OPEN, _CLOSE)
    template_marks: ClassVar[tuple[str, ...]] = (_OPEN,)

    def _read(self) -> Iterator[None]:
        yield from self._text_of_calls()
        while (mark := (yield from self._pass_until(_OPEN))) is not None:
            if not (yield from self._calls(mark.end, of_any_name=True)):
                self._take(mark.end, Kind.CONTENT)
                continue
            # Some models write several calls between one pair of tags.
            while not (yield from self._skip(_CLOSE)) and (yield from self._calls(0, of_any_name=True)):
                pass
