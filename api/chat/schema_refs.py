"""A JSON schema within another one: its own references go on pointing to its own parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_VALUES: Final = frozenset({"const", "enum", "default", "example", "examples"})
"""Keywords whose values are no schemas."""
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values are schemas by name."""


def moved(schema: Any, place: str) -> Any:
    """The schema with every ``#...`` in it written as ``place...``.

    Args:
        place: a JSON pointer to where the schema will stand, as ``#/$defs/0``.
    """
    if isinstance(schema, list):
        return [moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    # Its own address would be what its references are relative to.
    return {key: _moved_value(key, value, place) for key, value in schema.items() if key != "$id"}


def _moved_value(key: str, value: Any, place: str) -> Any:
    if key in _VALUES:
        return value
    if key == "$ref" and isinstance(value, str):
        return place + value[1:] if value.startswith("#") else value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: moved(each, place) for name, each in value.items()}
    return moved(value, place)
