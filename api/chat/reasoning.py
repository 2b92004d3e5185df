"""ThinkReader: what a model thinks, between tags at the beginning of its text, apart from what it answers.

Where the chat template has opened the tag already the worker puts it before the text: here it stands always.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from pagefleet.api.chat.tool_parsers.text_reader import Kind, TextReader

_TAGS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}


class ThinkReader(TextReader):
    special_tokens: ClassVar[tuple[str, ...]] = (*_TAGS, *_TAGS.values())

    def _read(self) -> Iterator[None]:
        for opening, closing in _TAGS.items():
            if (yield from self._skip(opening)):
                yield from self._skip_blanks()
                mark = yield from self._pass_until(closing, kind=Kind.REASONING)
                self._take(0 if mark is None else mark.end, Kind.MARKUP)
                yield from self._skip_blanks()
                return


REASONING_PARSERS: Final[dict[str, type[TextReader]]] = {"think": ThinkReader}
"""By the names that model cards and jobs have for them."""
