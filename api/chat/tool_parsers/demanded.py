"""Calls that a grammar enforces, for any model: the text is only JSON."""

from __future__ import annotations

from collections.abc import Iterator

from pagefleet.api.chat.tool_parsers.call_reader import CallReader
from pagefleet.api.chat.tool_parsers.text_reader import Kind


class NamedReader(CallReader):
    """The text is the arguments of the function that the request named."""

    def _read(self) -> Iterator[None]:
        while not self._rest:
            if self._has_ended:
                return
            yield
        self._take_as(0, Kind.CALL, next(iter(self.names)))
        while True:
            self._take(len(self._rest), Kind.ARGUMENTS)
            yield


class RequiredReader(CallReader):
    """The text is a list of calls."""

    def _read(self) -> Iterator[None]:
        yield from self._calls(0)
