"""Server-sent events: how one is written, and what its id says.

An id says how many tokens of each choice a reader has with it, ``12`` or ``12.9.14``, an ``e`` behind a
choice whose end has said something more, and after all of them a letter for each thing that the rest of the
stream must not forget.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    # nginx would collect the events.
    "x-accel-buffering": "no",
}
_ID: Final = re.compile(r"(?P<counts>[0-9]{1,8}e?(?:\.[0-9]{1,8}e?){0,65535})(?P<flags>[a-z]{0,8})")
# In ASCII: some clients take U+2028 and the like for ends of lines.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_FLAGS: Final = {"u": "usage", "t": "token_ids", "c": "continuous_usage"}


class Position(NamedTuple):
    """Where a stream is: tokens sent of each choice, and what was asked of it."""

    counts: list[int]
    usage: bool = False
    token_ids: bool = False
    ended: frozenset[int] = frozenset()
    """Choices of which the reader also has what was kept for the end."""
    continuous_usage: bool = False
    """Not only at the end: with each event."""

    def __str__(self) -> str:
        flags = "".join(letter for letter, name in _FLAGS.items() if getattr(self, name))
        if not self.ended:
            return ".".join(map(str, self.counts)) + flags
        ends = ("e" if choice in self.ended else "" for choice in range(len(self.counts)))
        return ".".join(f"{count}{end}" for count, end in zip(self.counts, ends, strict=True)) + flags


def parse_position(text: str) -> Position | None:
    """None where it is no event's id."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    options = {name: letter in found["flags"] for letter, name in _FLAGS.items()}
    counts = found["counts"].split(".")
    ended = frozenset(choice for choice, count in enumerate(counts) if count.endswith("e"))
    return Position([int(count.rstrip("e")) for count in counts], **options, ended=ended)


def event(data: dict[str, Any], event_id: str | None = None, *, head: str = "") -> bytes:
    """JSON has no line breaks, and so has the event.

    Args:
        head: the first fields of ``data``, which are the same in every event of a stream, as
            :func:`head_of` spells them.
    """
    name = "" if event_id is None else f"id: {event_id}\n"
    text = _encode(data)
    whole = f"{head},{text[1:]}" if head else text
    return f"{name}data: {whole}\n\n".encode()


def head_of(data: dict[str, Any]) -> str:
    """Without its closing brace."""
    return _encode(data)[:-1]
