"""Llama 3: ``{"name": ..., "parameters": {...}}`` as the whole text, several with ``;`` between them, or
behind ``<|python_tag|>``, which is no text for anybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from pagefleet.api.chat.tool_parsers.call_reader import CallReader

_TAG: Final = "<|python_tag|>"


class Llama3Reader(CallReader):
    special_tokens: ClassVar[tuple[str, ...]] = (_TAG,)
    template_marks: ClassVar[tuple[str, ...]] = (_TAG, '"parameters": dictionary of argument name')

    def _read(self) -> Iterator[None]:
        yield from self._text_of_calls(fenced_only=True)
        is_tagged = False
        while True:
            # Without the tag an object is a call only where it names a function that there is.
            is_tagged = (yield from self._skip(_TAG)) or is_tagged
            if (yield from self._calls(0, of_any_name=is_tagged)):
                yield from self._skip(";")
            elif (yield from self._pass_until(_TAG)) is None:
                return
