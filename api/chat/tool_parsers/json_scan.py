"""JsonScan: finds the end of a JSON value while its text arrives."""

from __future__ import annotations

import re
from typing import Final

_OUTSIDE: Final = re.compile(r'["{}\[\]]')
_INSIDE: Final = re.compile(r'["\\]')


class JsonScan:
    """Counts brackets outside strings. A string alone is a value too. The text need not be valid JSON."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.has_ended = False

    def feed(self, text: str) -> int:
        """Return how many of these characters belong to the value."""
        at = 0
        while at < len(text) and not self.has_ended:
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = (_INSIDE if self._in_string else _OUTSIDE).search(text, at)
            if found is None:
                return len(text)
            self._pass(found[0])
            at = found.end()
        return at

    def _pass(self, sign: str) -> None:
        if sign == "\\":
            self._escaped = True
        elif sign == '"':
            self._in_string = not self._in_string
        elif sign in "{[":
            self._depth += 1
        else:
            self._depth -= 1
        self.has_ended = self._depth <= 0 and not self._in_string
