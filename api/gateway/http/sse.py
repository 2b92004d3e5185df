"""Server-sent events: their encoding and their ids.

An id is a position in a stream: the number of tokens that a reader has received of each choice (``12``, or
``12.9.14``), an ``e`` after a choice whose held-back end it has received, and a letter for each option of
the stream.
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
    # nginx would buffer the events.
    "x-accel-buffering": "no",
}
_ID: Final = re.compile(r"(?P<counts>[0-9]{1,8}e?(?:\.[0-9]{1,8}e?){0,65535})(?P<flags>[a-z]{0,8})")
# ASCII only: some clients treat U+2028 and similar characters as line ends.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_FLAGS: Final = {"u": "usage", "t": "token_ids", "c": "continuous_usage"}


class Position(NamedTuple):
    """A position in a stream: the number of tokens sent of each choice, and the options of the stream."""

    counts: list[int]
    usage: bool = False
    token_ids: bool = False
    ended: frozenset[int] = frozenset()
    """Choices whose held-back end has been sent."""
    continuous_usage: bool = False
    """Report the usage in each event, not only at the end."""

    def __str__(self) -> str:
        flags = "".join(letter for letter, name in _FLAGS.items() if getattr(self, name))
        if not self.ended:
            return ".".join(map(str, self.counts)) + flags
        ends = ("e" if choice in self.ended else "" for choice in range(len(self.counts)))
        return ".".join(f"{count}{end}" for count, end in zip(self.counts, ends, strict=True)) + flags


def parse_position(text: str) -> Position | None:
    """Return None if the text is not the id of an event."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    options = {name: letter in found["flags"] for letter, name in _FLAGS.items()}
    counts = found["counts"].split(".")
    ended = frozenset(choice for choice, count in enumerate(counts) if count.endswith("e"))
    return Position([int(count.rstrip("e")) for count in counts], **options, ended=ended)


def event(data: dict[str, Any], event_id: str | None = None, *, head: str = "") -> bytes:
    """Return an event. JSON has no line breaks, so one ``data:`` line is enough.

    Args:
        head: further fields that are the same in every event of a stream, encoded by :func:`head_of`.
    """
    name = "" if event_id is None else f"id: {event_id}\n"
    text = _encode(data)
    whole = f"{head},{text[1:]}" if head else text
    return f"{name}data: {whole}\n\n".encode()


def head_of(data: dict[str, Any]) -> str:
    """Return ``data`` as JSON without the closing brace."""
    return _encode(data)[:-1]
