"""CallReader: reads calls that are JSON objects, ``{"name": ..., "arguments": {...}}``.

It returns arguments while the model writes them. If the name does not come first, it waits for the whole
object. An object that is not a call stays content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

from pagefleet.api.chat.tool_parsers.json_scan import JsonScan
from pagefleet.api.chat.tool_parsers.text_reader import Kind, Piece, TextReader, Waiting

_ARGUMENTS: Final = ("arguments", "parameters")
_FIRST_KEYS: Final = ("name", "function", "type", "id", *_ARGUMENTS)
_NOTHING: Final = "{}"
_FENCE: Final = "```"
_OPENING: Final = re.compile(r"\s*(?:(```)[a-z_]{0,16}[ \t]*\n|(<tool_call>))")
_MAYBE_OPENING: Final = re.compile(r"\s*(?:`{1,3}|```[a-z_]{0,16}[ \t]*)?")
_TAG: Final = "<tool_call>"
_CLOSING: Final = {_FENCE: _FENCE, _TAG: "</tool_call>"}
_MAX_OPENING: Final = 64


class CallReader(TextReader):
    openings: ClassVar[tuple[str, ...]] = (_FENCE,)
    """Keys of _CLOSING that may come before calls, in addition to the notation's own tag."""

    def _bare_calls(self) -> Waiting:
        """Read the calls at the start of the rest. Return False, and take nothing, if there are none."""
        has_found = False
        opening, at = yield from self._opening()
        while (yield from self._calls(at)):
            has_found = True
            if opening:
                yield from self._skip(_CLOSING[opening])
            yield from self._skip(",", ";")
            opening, at = yield from self._opening()
        return has_found

    def _text_of_calls(self, *, fenced_only: bool = False) -> Iterator[None]:
        """Read a whole text that consists of calls of known tools, bare or fenced. Models write such texts
        even if their template asks for another notation. The text is held back to its end; any other text
        stays content."""
        opening, _ = yield from self._opening()
        if fenced_only and not opening:
            return
        self._is_holding = True
        has_found = yield from self._bare_calls()
        if has_found:
            yield from self._skip_blanks()
        arguments = _arguments_of(self._pieces)
        if has_found and (self._rest or not all(map(is_json, arguments))):
            self._has_called = False
            self._pieces = [Piece(Kind.CONTENT, piece.raw, piece.raw) for piece in self._pieces if piece.raw]
        self._is_holding = False

    def _opening(self) -> Generator[None, None, tuple[str, int]]:
        """Return the opening that the rest has before a call, and its end."""
        while True:
            found = _OPENING.match(self._rest)
            opening = "" if found is None else found[1] or found[2]
            if found is not None and opening in self.openings and found.end() <= _MAX_OPENING:
                return opening, found.end()
            rest = self._rest.lstrip()
            is_open = _MAYBE_OPENING.fullmatch(self._rest) or (
                _TAG in self.openings and _TAG.startswith(rest)
            )
            if found is not None or self._has_ended or len(self._rest) > _MAX_OPENING or not is_open:
                return "", 0
            yield

    def _calls(self, at: int, *, of_any_name: bool = False) -> Waiting:
        """Read a call, or a list of calls, at a place in the rest. The characters before it are markup.
        Return False, and take nothing, if there is none."""
        token, end = yield from self._token(at)
        if token != "[":
            return token == "{" and (yield from self._call(end, of_any_name))
        token, end = yield from self._token(end)
        if token != "{" or not (yield from self._call(end, of_any_name)):
            return False
        while (yield from self._skip(",")):
            token, end = yield from self._token(0)
            if token != "{" or not (yield from self._call(end, of_any_name)):
                return True
        yield from self._skip("]")
        return True

    def _call(self, at: int, of_any_name: bool) -> Waiting:
        """Read one call after its opening brace."""
        key, end = yield from self._key(at)
        if key not in _FIRST_KEYS:
            return False
        if key != "name":
            return (yield from self._whole_call(at, of_any_name))
        token, end = yield from self._token(end)
        name = _text(token)
        if not name or not (of_any_name or name in self.names):
            return False
        token, end = yield from self._token(end)
        if token == "}":
            self._begin(end, name)
            self._take_as(0, Kind.ARGUMENTS, _NOTHING)
            return True
        key, end = (yield from self._key(end)) if token == "," else ("", end)
        if key not in _ARGUMENTS:
            return (yield from self._whole_call(at, of_any_name))
        self._begin(end, name)
        yield from self._arguments()
        yield from self._tail()
        return True

    def _key(self, at: int) -> Generator[None, None, tuple[str, int]]:
        """Return the next key and the end of its colon; "" if there is no key."""
        key, end = yield from self._token(at)
        colon, end = (yield from self._token(end)) if key.startswith('"') else ("", end)
        return (_text(key) if colon == ":" else ""), end

    def _begin(self, count: int, name: str) -> None:
        self._has_called = True
        self._take_as(count, Kind.CALL, name)

    def _arguments(self) -> Iterator[None]:
        """Read the value at the start of the rest."""
        yield from self._skip_blanks()
        if self._rest[:1] in ("{", "["):
            yield from self._value(Kind.ARGUMENTS)
        elif self._rest[:1] == '"':
            yield from self._quoted()
        else:
            yield from self._word()

    def _value(self, kind: Kind) -> Iterator[None]:
        scan = JsonScan()
        while True:
            self._take(scan.feed(self._rest), kind)
            if scan.has_ended or self._has_ended:
                return
            yield

    def _quoted(self) -> Iterator[None]:
        """Read arguments that are JSON in a string, as in OpenAI's API, after waiting for its end."""
        scan = JsonScan()
        count = 0
        while True:
            count += scan.feed(self._rest[count:])
            if scan.has_ended or self._has_ended:
                self._take_as(count, Kind.ARGUMENTS, _text(self._rest[:count]) or self._rest[:count])
                return
            yield

    def _word(self) -> Iterator[None]:
        """Read a number, ``true``, ``false`` or ``null``, up to the character that ends it."""
        while True:
            count = next((i for i, char in enumerate(self._rest) if char in ",}] \t\r\n<"), -1)
            if count >= 0 or self._has_ended:
                word = self._rest if count < 0 else self._rest[:count]
                self._take_as(len(word), Kind.ARGUMENTS, _NOTHING if word == "null" else word)
                return
            yield

    def _tail(self) -> Iterator[None]:
        """Read the object to its end after the arguments, as far as it is valid."""
        while not (yield from self._skip("}")):
            token, end = yield from self._token(0)
            key, end = (yield from self._key(end)) if token == "," else ("", end)
            if not key:
                return
            self._take(end, Kind.MARKUP)
            yield from self._skip_blanks()
            if self._rest[:1] in ("{", "[", '"'):
                yield from self._value(Kind.MARKUP)
            else:
                yield from self._blank_word()

    def _blank_word(self) -> Iterator[None]:
        while True:
            count = next((i for i, char in enumerate(self._rest) if char in ",}"), len(self._rest))
            ended = count < len(self._rest) or self._has_ended
            self._take(count, Kind.MARKUP)
            if ended:
                return
            yield

    def _whole_call(self, at: int, of_any_name: bool) -> Waiting:
        """Read a call whose arguments come before its name, or that is inside ``function``."""
        scan = JsonScan()
        scan.feed("{")
        end = at
        while True:
            end += scan.feed(self._rest[end:])
            if scan.has_ended:
                break
            if self._has_ended:
                return False
            yield
        found = _as_call("{" + self._rest[at:end])
        if found is None or not (of_any_name or found[0] in self.names):
            return False
        self._begin(end, found[0])
        self._take_as(0, Kind.ARGUMENTS, found[1])
        return True


def _arguments_of(pieces: Iterable[Piece]) -> list[str]:
    """Return the arguments of each call, as far as they have arrived."""
    found: list[str] = []
    for piece in pieces:
        if piece.kind is Kind.CALL:
            found.append("")
        elif piece.kind is Kind.ARGUMENTS:
            found[-1] += piece.text
    return found


def is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def _text(token: str) -> str:
    """Return the value of a JSON string; "" if it is invalid."""
    try:
        value = json.loads(token, strict=False)
    except ValueError:
        return ""
    return _encodable(value) if isinstance(value, str) else ""


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can escape but UTF-8 cannot represent."""
    return text.encode("utf-8", errors="replace").decode()


def _as_call(text: str) -> tuple[str, str] | None:
    """Return name and arguments if the object is a call."""
    try:
        value = json.loads(text, strict=False)
        if isinstance(value.get("function"), Mapping):
            value = value["function"]
        name = value.get("name") or value.get("function")
        arguments: Any = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), {})
        if not isinstance(arguments, str):
            # json.dumps keeps escapes, and with them lone surrogates.
            arguments = json.dumps(arguments)
    except (ValueError, RecursionError):
        return None
    return (_encodable(name), _encodable(arguments)) if isinstance(name, str) and name else None
