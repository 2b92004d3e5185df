"""ThinkReader: separates a model's reasoning, between tags at the start of its text, from its answer.

If the chat template ends with the opening tag, the worker puts the tag in front of the model's text. So the
text always begins with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final, Literal

from pagefleet.api.chat.tool_parsers.text_reader import Kind, TextReader

ReasoningParserName = Literal["think"]
"""The notations that a model can have; the choices of ``--reasoning-parser``."""

_TAGS: Final = {"<think>": "</think>", "[THINK]": "[/THINK]"}
_OPEN_AT_END: Final = re.compile(rf"({'|'.join(map(re.escape, _TAGS))})\s*\Z")


class ThinkReader(TextReader):
    special_tokens: ClassVar[tuple[str, ...]] = (*_TAGS, *_TAGS.values())
    template_marks: ClassVar[tuple[str, ...]] = tuple(_TAGS.values())

    def _read(self) -> Iterator[None]:
        for opening, closing in _TAGS.items():
            if (yield from self._skip(opening)):
                yield from self._skip_blanks()
                mark = yield from self._pass_until(closing, kind=Kind.REASONING)
                self._take(0 if mark is None else mark.end, Kind.MARKUP)
                yield from self._skip_blanks()
                return


REASONING_PARSERS: Final[dict[str, type[TextReader]]] = {"think": ThinkReader}
"""All parsers by the names that model cards and jobs use."""


def open_tag_of(prompt: str) -> str:
    """Return the opening tag, with the blanks after it, that a rendered prompt ends with; "" if none."""
    found = _OPEN_AT_END.search(prompt)
    return found[0] if found is not None else ""


def closing_of(open_tag: str) -> str:
    """Return the text that closes a tag from :func:`open_tag_of` without any reasoning."""
    return f"\n{_TAGS[open_tag.strip()]}\n\n"
