"""Embed a JSON schema in another schema so that its references still point to its own parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_VALUES: Final = frozenset({"const", "enum", "default", "example", "examples"})
"""Keywords whose values are not schemas."""
_NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose values map names to schemas."""


def moved(schema: Any, place: str) -> Any:
    """Return the schema with each reference ``#...`` in it changed to ``place...``.

    Args:
        place: the JSON pointer of the schema in the outer schema, for example ``#/$defs/0``.
    """
    if isinstance(schema, list):
        return [moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    # Without $id: references would be relative to it.
    return {key: _moved_value(key, value, place) for key, value in schema.items() if key != "$id"}


def _moved_value(key: str, value: Any, place: str) -> Any:
    if key in _VALUES:
        return value
    if key == "$ref" and isinstance(value, str):
        return place + value[1:] if value.startswith("#") else value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: moved(each, place) for name, each in value.items()}
    return moved(value, place)
