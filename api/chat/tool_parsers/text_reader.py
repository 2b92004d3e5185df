"""TextReader: splits a model's text into content, reasoning and tool calls while it grows.

The result depends only on the text so far, not on the chunks in which it arrived. So after an interruption a
new reader of the same text continues with the same pieces. Nothing is lost: the ``raw`` texts of all pieces,
joined, are the text.

    text so far   [ returned ........ | rest ]      the rest is not decided yet
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
"""Maximum characters of a name or a key."""
_MAX_BLANKS: Final = 512
"""Maximum blanks that are held back because a mark may follow."""

Waiting = Generator[None, None, bool]
"""Yields when it needs more text."""


class Kind(Enum):
    CONTENT = auto()
    REASONING = auto()
    CALL = auto()
    """A call begins. The text is the function's name."""
    ARGUMENTS = auto()
    """A part of the last call's arguments."""
    MARKUP = auto()
    """Separates the other kinds; not part of the message."""


class Piece(NamedTuple):
    kind: Kind
    text: str
    raw: str
    """What the model wrote."""


class Mark(NamedTuple):
    """A mark in the rest: blanks from ``begin``, then the mark up to ``end``."""

    begin: int
    end: int
    text: str


class TextReader(ABC):
    """
    Args:
        names: the names of the tools.
    """

    special_tokens: ClassVar[tuple[str, ...]] = ()
    """Special tokens that the text must keep for this reader."""
    template_marks: ClassVar[tuple[str, ...]] = ()
    """Texts of which a chat template has at least one if its model uses this notation."""
    id_chars: ClassVar[int | None] = None
    """The length of a call's id, if the model's template requires one."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = frozenset(names)
        self._rest = ""
        self._has_ended = False
        self._has_called = False
        self._is_holding = False
        """Pieces are not returned yet, because they may become something else."""
        self._pieces: list[Piece] = []
        self._steps = self._run()

    @classmethod
    def is_used_by(cls, template: str) -> bool:
        """Return whether a chat template shows that its model uses this notation."""
        return any(mark in template for mark in cls.template_marks)

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that more text decides."""
        self._rest += text
        return self._advance()

    def end(self) -> list[Piece]:
        """Return the remaining pieces: the text has ended."""
        self._has_ended = True
        return self._advance()

    @abstractmethod
    def _read(self) -> Iterator[None]:
        """Read the text from its first character; yield to get more. What it leaves unread is content."""

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
        """Take characters with a different text than the model wrote."""
        raw, self._rest = self._rest[:count], self._rest[count:]
        self._pieces.append(Piece(kind, text, raw))

    def _pass_until(self, *marks: str, kind: Kind = Kind.CONTENT) -> Generator[None, None, Mark | None]:
        """Take everything before the first of these marks, except the blanks next to it.

        Returns:
            The mark, which stays in the rest with its blanks. None if the text ended without one; then
            everything is taken.
        """
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
        """Return the start of the blanks before a place in the rest. Only the last ones count if there are
        many, so that the time is linear in the text."""
        begin = max(0, at - _MAX_BLANKS)
        return begin + len(self._rest[begin:at].rstrip())

    def _skip(self, *marks: str) -> Waiting:
        """Take blanks and one of these marks, if they come next."""
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
        """Return the next JSON bracket, sign or string after a place in the rest, and its end. Return "" if
        something else comes next."""
        while True:
            found = _TOKEN.match(self._rest, at)
            if found is not None and found.end() - at <= _MAX_TOKEN:
                return found[1], found.end()
            is_open = len(self._rest) - at <= _MAX_TOKEN and _MAYBE_TOKEN.fullmatch(self._rest, at)
            if found is not None or self._has_ended or not is_open:
                return "", at
            yield


def _num_begun(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of the text may be the beginning of a mark."""
    beginnings = (count for mark in marks for count in range(1, len(mark)) if text.endswith(mark[:count]))
    return max(beginnings, default=0)
