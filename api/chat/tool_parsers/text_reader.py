"""TextReader: a model's text as it grows, told apart piece by piece.

What has been said of a text is a function of the text so far alone, never of the pieces in which it came: a
stream that was cut anywhere goes on identically once its text has been read again. Nothing is lost: the
pieces' ``raw`` texts, joined, are the text.

    text so far   [ told ............ | rest ]      rest may still turn out to be one thing or another
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from enum import Enum, auto
from typing import ClassVar, Final, NamedTuple

_TOKEN: Final = re.compile(r'\s*([{}\[\]:,]|"[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_MAYBE_TOKEN: Final = re.compile(r'\s*("[^"\\]*(?:\\.[^"\\]*)*\\?)?', re.DOTALL)
_MAX_TOKEN: Final = 512
"""Characters of a name or a key, at most."""
_MAX_BLANKS: Final = 512
"""That are held back because a mark may follow."""

Waiting = Generator[None, None, bool]
"""Yields where more text is needed."""


class Kind(Enum):
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()
    """A call begins; the text is the function's name."""
    ARGUMENTS = auto()
    """Some of the arguments of the call that began last."""
    MARKUP = auto()
    """Says what the others are, and is nobody's to read."""


class Piece(NamedTuple):
    kind: Kind
    text: str
    raw: str
    """As the model wrote it."""


class Mark(NamedTuple):
    """A mark that was found in the rest: blanks stand before it from ``begin`` on."""

    begin: int
    end: int
    text: str


class TextReader(ABC):
    """
    Args:
        names: of the functions that there are.
    """

    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Which of them the text must keep to be read."""
    template_marks: ClassVar[tuple[str, ...]] = ()
    """Texts of which a chat template has at least one if its model uses this notation."""
    id_chars: ClassVar[int | None] = None
    """How long a call's id must be, where the model's template minds."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = frozenset(names)
        self._rest = ""
        self._has_ended = False
        self._has_called = False
        self._is_holding = False
        """What is read is not passed on yet: it may turn out to be something else."""
        self._pieces: list[Piece] = []
        self._steps = self._run()

    @classmethod
    def is_shown_in(cls, template: str) -> bool:
        """Return whether a chat template shows that its model uses this notation."""
        return any(mark in template for mark in cls.template_marks)

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with some more text."""
        self._rest += text
        return self._advance()

    def end(self) -> list[Piece]:
        """All that is left: no more text comes."""
        self._has_ended = True
        return self._advance()

    @abstractmethod
    def _read(self) -> Iterator[None]:
        """Reads a text from its first character; yields where it needs more. What it leaves is content."""

    def _run(self) -> Iterator[None]:
        yield from self._read()
        while True:
            self._take(len(self._rest))
            yield

    def _advance(self) -> list[Piece]:
        next(self._steps)
        if self._is_holding:
            return []
        pieces, self._pieces = self._pieces, []
        return pieces

    def _take(self, count: int, kind: Kind = Kind.CONTENT) -> None:
        if count:
            raw, self._rest = self._rest[:count], self._rest[count:]
            self._pieces.append(Piece(kind, "" if kind is Kind.MARKUP else raw, raw))

    def _take_as(self, count: int, kind: Kind, text: str) -> None:
        """Other words than the model's."""
        raw, self._rest = self._rest[:count], self._rest[count:]
        self._pieces.append(Piece(kind, text, raw))

    def _pass_until(self, *marks: str, kind: Kind = Kind.CONTENT) -> Generator[None, None, Mark | None]:
        """Passes on what stands before the first of these marks but for the blanks next to it, which stay in
        the rest with it. None: all has been passed on, and the text has ended."""
        while True:
            places = [(at, mark) for mark in marks if (at := self._rest.find(mark)) >= 0]
            if places:
                at, mark = min(places)
                begin = self._blanks_before(at)
                self._take(begin, kind)
                return Mark(at - begin, at - begin + len(mark), mark)
            if self._has_ended:
                is_after_call = self._has_called and not self._rest.strip()
                self._take(len(self._rest), Kind.MARKUP if is_after_call else kind)
                return None
            self._take(self._blanks_before(len(self._rest) - _num_begun(self._rest, marks)), kind)
            yield

    def _blanks_before(self, at: int) -> int:
        """Where the blanks before a place in the rest begin: of very many the last ones, so that no text
        costs more than its length."""
        begin = max(0, at - _MAX_BLANKS)
        return begin + len(self._rest[begin:at].rstrip())

    def _skip(self, *marks: str) -> Waiting:
        """Takes blanks and one of these marks, where they come next."""
        while True:
            rest = self._rest.lstrip()
            for mark in marks:
                if rest.startswith(mark):
                    self._take(len(self._rest) - len(rest) + len(mark), Kind.MARKUP)
                    return True
            if self._has_ended or not any(mark.startswith(rest) for mark in marks):
                return False
            yield

    def _skip_blanks(self) -> Iterator[None]:
        while True:
            self._take(len(self._rest) - len(self._rest.lstrip()), Kind.MARKUP)
            if self._rest or self._has_ended:
                return
            yield

    def _token(self, at: int) -> Generator[None, None, tuple[str, int]]:
        """JSON's next bracket, sign or string from a place in the rest on, and where it ends; "" where
        something else stands there."""
        while True:
            found = _TOKEN.match(self._rest, at)
            if found is not None and found.end() - at <= _MAX_TOKEN:
                return found[1], found.end()
            is_open = len(self._rest) - at <= _MAX_TOKEN and _MAYBE_TOKEN.fullmatch(self._rest, at)
            if found is not None or self._has_ended or not is_open:
                return "", at
            yield


def _num_begun(text: str, marks: Sequence[str]) -> int:
    """How many characters at the text's end may be the beginning of a mark."""
    beginnings = (count for mark in marks for count in range(1, len(mark)) if text.endswith(mark[:count]))
    return max(beginnings, default=0)
