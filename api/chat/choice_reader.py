"""ChoiceReader: reads a choice's text as the fields of OpenAI's message: content, reasoning, tool calls.

Its state depends only on the text so far. So any gateway that has read the same text continues with the same
fields, and the calls have the same ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pagefleet.api.chat.reasoning import REASONING_PARSERS
from pagefleet.api.chat.tool_parsers import NAMED, TOOL_PARSERS
from pagefleet.api.chat.tool_parsers.call_reader import is_json
from pagefleet.api.chat.tool_parsers.text_reader import Kind, Piece, TextReader
from pagefleet.api.contract.chat_message import Reading

_ID_CHARS: Final = 24
_FIELDS: Final = {Kind.CONTENT: "content", Kind.REASONING: "reasoning_content"}


class ChoiceReader:
    """
    Args:
        job_id, choice: the ids of the calls derive from them and from each call's index.
    """

    def __init__(self, reading: Reading, job_id: str, choice: int) -> None:
        self._reading = reading
        self._place = f"{job_id} {choice}"
        self._reasoning = _reader(REASONING_PARSERS.get(reading.reasoning or ""), reading)
        self._calls = _reader(TOOL_PARSERS.get(reading.tools or ""), reading)
        self._num_calls = 0
        self._arguments: list[str] = []
        """The arguments of the last call."""
        self._held: list[Piece] = []
        """The pieces of a call that is not complete, if only whole calls are returned."""

    def feed(self, text: str) -> dict[str, Any]:
        """Return what more text adds to the message, as a stream's ``delta``."""
        pieces = self._reasoning.feed(text) if self._reasoning is not None else [_content(text)]
        return self._delta(self._with_calls(pieces))

    def end(self) -> dict[str, Any]:
        """Return what the end of the text adds to the message."""
        rest = self._reasoning.end() if self._reasoning is not None else []
        pieces = self._with_calls(rest)
        pieces = [*pieces, *(self._whole(self._calls.end()) if self._calls is not None else ())]
        return self._delta([*pieces, *self._released()])

    def finish_reason(self, reason: str | None) -> str | None:
        """Return OpenAI's finish reason: ``tool_calls`` instead of ``stop``, unless the request named the
        function or the last call is incomplete."""
        is_called = self._num_calls > 0 and self._reading.tools != NAMED and is_json("".join(self._arguments))
        return "tool_calls" if reason == "stop" and is_called else reason

    def _with_calls(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Split the content into content and calls."""
        found = []
        for piece in pieces:
            if self._calls is not None and piece.kind is Kind.CONTENT:
                found += self._whole(self._calls.feed(piece.text))
            else:
                found.append(piece)
        return found

    def _whole(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Hold each call back until it is complete, if the reading asks for whole calls."""
        if not self._reading.whole_calls:
            return list(pieces)
        found: list[Piece] = []
        for piece in pieces:
            has_arguments = any(each.kind is Kind.ARGUMENTS for each in self._held)
            if piece.kind is Kind.CALL or (has_arguments and piece.kind is not Kind.ARGUMENTS):
                found += self._released()
            (self._held if self._held or piece.kind is Kind.CALL else found).append(piece)
        return found

    def _released(self) -> list[Piece]:
        """Return the call that was held back, as content if its arguments are not JSON."""
        held, self._held = self._held, []
        if is_json("".join(piece.text for piece in held if piece.kind is Kind.ARGUMENTS)):
            return held
        return [_content("".join(piece.raw for piece in held))] if held else []

    def _delta(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        for kind, text, _ in pieces:
            if kind in _FIELDS:
                delta[_FIELDS[kind]] = delta.get(_FIELDS[kind], "") + text
            elif kind is Kind.CALL:
                self._num_calls += 1
                self._arguments = []
            elif kind is Kind.ARGUMENTS:
                self._arguments.append(text)
            if kind in (Kind.CALL, Kind.ARGUMENTS) and (self._num_calls == 1 or self._reading.parallel):
                self._add_to_call(delta.setdefault("tool_calls", []), kind, text)
        return {name: value for name, value in delta.items() if value}

    def _add_to_call(self, calls: list[dict[str, Any]], kind: Kind, text: str) -> None:
        index = self._num_calls - 1
        if kind is Kind.CALL:
            function = {"name": text, "arguments": ""}
            calls.append({"index": index, "id": self._id(index), "type": "function", "function": function})
        elif calls and calls[-1]["index"] == index:
            calls[-1]["function"]["arguments"] += text
        else:
            calls.append({"index": index, "function": {"arguments": text}})

    def _id(self, index: int) -> str:
        """Return the id of a call; all readers of a job return the same."""
        digest = hashlib.sha256(f"{self._place} {index}".encode()).hexdigest()
        num_chars = self._calls.id_chars if self._calls is not None else None
        return f"call_{digest[:_ID_CHARS]}" if num_chars is None else digest[:num_chars]


def joined(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of the message that consists of these deltas."""
    message: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for name in delta.keys() & set(_FIELDS.values()):
            message[name] = message.get(name, "") + delta[name]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                calls.append({"id": call["id"], "type": call["type"], "function": {**call["function"]}})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return {**message, "tool_calls": calls} if calls else message


def special_tokens(reading: Reading) -> list[str]:
    """Return the special tokens that the text must keep to be read."""
    parsers = (TOOL_PARSERS.get(reading.tools or ""), REASONING_PARSERS.get(reading.reasoning or ""))
    return [token for parser in parsers if parser is not None for token in parser.special_tokens]


def _reader(parser: type[TextReader] | None, reading: Reading) -> TextReader | None:
    """Return None if the reading has no parser, or one that only newer versions know."""
    return None if parser is None else parser(reading.names)


def _content(text: str) -> Piece:
    return Piece(Kind.CONTENT, text, text)
