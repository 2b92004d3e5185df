"""What structured jobs must look like: every kind, with and without wind_down."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

_LIST: Final = {
    "type": "array",
    "minItems": 3,
    "items": {
        "anyOf": [{"type": "integer", "maximum": 999}, {"enum": ["red", "green"]}, {"type": "boolean"}]
    },
}
_PARCEL: Final = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{2}-\\d+$"},
        "note": {"type": "string", "maxLength": 400},
        "sizes": {"type": "array", "items": {"type": "number"}, "maxItems": 40},
    },
    "required": ["code", "note", "sizes"],
    "additionalProperties": False,
}
_REGEX: Final = r"[a-d]+(-[a-z0-9]{2,9}){3,60}\."
_LARK: Final = 'start: item+ "."\nitem: "<" item* ">" | /[a-z]{1,4}/\n'
_EBNF: Final = 'root ::= item+ "."\nitem ::= "(" item* ")" | [a-z]\n'
_CHOICES: Final = [f"{first} {second} sky" for first in ("a", "no", "one") for second in ("blue", "grüne")]


class Shape(NamedTuple):
    """What is asked for, and whether a text that ended by itself is such a one."""

    wanted: dict[str, Any]
    is_whole: Callable[[str], bool]


def _nests(text: str, opening: str, closing: str) -> bool:
    depth = 0
    for letter in text:
        depth += (letter == opening) - (letter == closing)
        if depth < 0:
            return False
    return depth == 0 and text.endswith(".")


SHAPES: Final = (
    Shape({"json_schema": _LIST, "wind_down": True}, lambda text: len(json.loads(text)) >= 3),
    Shape({"regex": _REGEX}, lambda text: re.fullmatch(_REGEX, text) is not None),
    Shape({"json_schema": _PARCEL}, lambda text: set(json.loads(text)) == set(_PARCEL["required"])),
    Shape({"grammar": _LARK}, lambda text: _nests(text, "<", ">")),
    Shape({"json_object": True, "wind_down": True}, lambda text: isinstance(json.loads(text), dict)),
    Shape({"choice": _CHOICES}, _CHOICES.__contains__),
    Shape({"grammar": _EBNF}, lambda text: _nests(text, "(", ")")),
)


def is_whole(wanted: dict[str, Any], text: str) -> bool:
    """Whether a text that ended by itself is what was asked for."""
    shape = next(each for each in SHAPES if each.wanted == wanted)
    try:
        return shape.is_whole(text)
    except ValueError:
        return False
