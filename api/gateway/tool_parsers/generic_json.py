"""Any model that was told in words: the text begins with a call or a list of them, bare, fenced or tagged."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import ClassVar, Final

from pagefleet.api.gateway.tool_parsers.call_reader import CallReader

_TAG: Final = "<tool_call>"
_OPENING: Final = re.compile(r"\s*(?:(```)[a-z_]{0,16}[ \t]*\n|(<tool_call>))")
_MAYBE_OPENING: Final = re.compile(r"\s*(?:`{1,3}|```[a-z_]{0,16}[ \t]*)?")
_MAX_OPENING: Final = 64


class GenericJsonReader(CallReader):
    special_tokens: ClassVar[tuple[str, ...]] = (_TAG, "</tool_call>")

    def _read(self) -> Iterator[None]:
        opening, at = yield from self._opening()
        while (yield from self._calls(at)):
            if opening:
                yield from self._skip("```" if opening == "```" else "</tool_call>")
            yield from self._skip(",", ";")
            opening, at = yield from self._opening()
        if self._has_called:
            yield from self._pass_until()

    def _opening(self) -> Generator[None, None, tuple[str, int]]:
        """What the rest opens with before a call, and where it ends."""
        while True:
            found = _OPENING.match(self._rest)
            if found is not None and found.end() <= _MAX_OPENING:
                return found[1] or found[2], found.end()
            rest = self._rest.lstrip()
            is_open = _MAYBE_OPENING.fullmatch(self._rest) or _TAG.startswith(rest)
            if found is not None or self._has_ended or len(self._rest) > _MAX_OPENING or not is_open:
                return "", 0
            yield
