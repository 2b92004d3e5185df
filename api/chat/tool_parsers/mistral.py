"""Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]``, and since Tekken v11
``[TOOL_CALLS]name{...}``, optionally with ``[CALL_ID]...`` and ``[ARGS]`` in between; or the JSON of the
first form without a tag as the whole text."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import ClassVar, Final

from pagefleet.api.chat.tool_parsers.call_reader import CallReader
from pagefleet.api.chat.tool_parsers.text_reader import Kind

_TAG: Final = "[TOOL_CALLS]"
_HEAD: Final = re.compile(r"\s*([\w.:/-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?", re.ASCII)
_HEAD_CHARS: Final = re.compile(r"[\s\w.:/\[\]-]*", re.ASCII)
_MAX_HEAD: Final = 300


class MistralReader(CallReader):
    special_tokens: ClassVar[tuple[str, ...]] = (_TAG, "[ARGS]", "[CALL_ID]")
    template_marks: ClassVar[tuple[str, ...]] = (_TAG,)
    id_chars: ClassVar[int | None] = 9

    def _read(self) -> Iterator[None]:
        yield from self._text_of_calls()
        while (mark := (yield from self._pass_until(_TAG))) is not None:
            if (yield from self._calls(mark.end, of_any_name=True)):
                continue
            name, end = yield from self._head(mark.end)
            if name:
                self._begin(end, name)
                yield from self._value(Kind.ARGUMENTS)
            else:
                self._take(mark.end, Kind.MARKUP)

    def _head(self, at: int) -> Generator[None, None, tuple[str, int]]:
        """Return the function's name and the place of its arguments' brace; "" if there is none."""
        while True:
            brace = self._rest.find("{", at, at + _MAX_HEAD)
            if brace >= 0:
                found = _HEAD.fullmatch(self._rest, at, brace)
                return (found[1], brace) if found is not None else ("", at)
            is_open = len(self._rest) < at + _MAX_HEAD and _HEAD_CHARS.fullmatch(self._rest, at)
            if self._has_ended or not is_open:
                return "", at
            yield
