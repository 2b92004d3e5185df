"""ChoiceReader: one choice's text as OpenAI's fields: content, what was thought, calls of tools.

It holds nothing that the text so far does not say: any gateway that has read the same text goes on with the
same fields, and calls have the same ids.
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
        job_id, choice: what a call's id is made of, beside its place.
    """

    def __init__(self, reading: Reading, job_id: str, choice: int) -> None:
        self._reading = reading
        self._place = f"{job_id} {choice}"
        self._thoughts = _reader(REASONING_PARSERS.get(reading.reasoning or ""), reading)
        self._calls = _reader(TOOL_PARSERS.get(reading.tools or ""), reading)
        self._num_calls = 0
        self._arguments: list[str] = []
        """Of the call that came last."""
        self._held: list[Piece] = []
        """A call that is not complete, where only whole ones are passed on."""

    def feed(self, text: str) -> dict[str, Any]:
        """What some more text adds to the message, as a stream's ``delta``."""
        pieces = self._thoughts.feed(text) if self._thoughts is not None else [_content(text)]
        return self._delta(self._without_calls(pieces))

    def end(self) -> dict[str, Any]:
        """What the text's end adds to it."""
        thoughts = self._thoughts.end() if self._thoughts is not None else []
        pieces = self._without_calls(thoughts)
        pieces = [*pieces, *(self._whole(self._calls.end()) if self._calls is not None else ())]
        return self._delta([*pieces, *self._released()])

    def finish_reason(self, reason: str | None) -> str | None:
        """OpenAI's: ``stop`` becomes ``tool_calls``, but not where the request named the function, nor where
        the last call broke off."""
        is_called = self._num_calls > 0 and self._reading.tools != NAMED and is_json("".join(self._arguments))
        return "tool_calls" if reason == "stop" and is_called else reason

    def _without_calls(self, pieces: Iterable[Piece]) -> list[Piece]:
        """With what stands in the content told apart too."""
        found = []
        for piece in pieces:
            if self._calls is not None and piece.kind is Kind.CONTENT:
                found += self._whole(self._calls.feed(piece.text))
            else:
                found.append(piece)
        return found

    def _whole(self, pieces: Iterable[Piece]) -> list[Piece]:
        """With each call held back until it is complete, if the reading says so."""
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
        """The call that was held back; text, if its arguments do not parse."""
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
        """The same whoever shows it."""
        spelled = hashlib.sha256(f"{self._place} {index}".encode()).hexdigest()
        num_chars = self._calls.id_chars if self._calls is not None else None
        return f"call_{spelled[:_ID_CHARS]}" if num_chars is None else spelled[:num_chars]


def joined(deltas: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a message that was told in these pieces."""
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
    """Those that its text must keep."""
    parsers = (TOOL_PARSERS.get(reading.tools or ""), REASONING_PARSERS.get(reading.reasoning or ""))
    return [token for parser in parsers if parser is not None for token in parser.special_tokens]


def _reader(parser: type[TextReader] | None, reading: Reading) -> TextReader | None:
    """None for what is not asked for, and for what a newer version calls so."""
    return None if parser is None else parser(reading.names)


def _content(text: str) -> Piece:
    return Piece(Kind.CONTENT, text, text)
