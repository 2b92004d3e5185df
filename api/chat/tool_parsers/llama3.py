"""Llama 3: ``{"name": ..., "parameters": {...}}``, several separated by ``;``, as the whole text or after
``<|python_tag|>``, which is not part of the message."""

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
            # Without the tag an object is a call only if it names a known tool.
            is_tagged = (yield from self._skip(_TAG)) or is_tagged
            if (yield from self._calls(0, of_any_name=is_tagged)):
                yield from self._skip(";")
            elif (yield from self._pass_until(_TAG)) is None:
                return
