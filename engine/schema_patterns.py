"""The patterns of a JSON schema in the words of the library that keeps them."""

from __future__ import annotations

import json
from typing import Any, Final

from pagefleet.engine.ecma_regex import to_rust

__all__ = ["with_rust_patterns"]

_NAMED: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""These have names of the author's choice, which say nothing of the schemas under them."""
_DATA: Final = frozenset({"const", "enum", "default", "examples"})


def with_rust_patterns(source: str) -> str:
    """A schema's text with every `pattern` and every name under `patternProperties` rewritten; the same text,
    where none needs to be. What can't be read is left to the library, which says so."""
    # Most have none. A key may be written in escapes.
    if '"pattern' not in source and "\\u" not in source:
        return source
    try:
        schema = json.loads(source)
        rewritten = _schema(schema)
        return source if rewritten == schema else json.dumps(rewritten)
    except (ValueError, RecursionError):
        return source


def _schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {keyword: _value(keyword, value) for keyword, value in schema.items()}


def _value(keyword: str, value: Any) -> Any:
    if keyword in _DATA:
        return value
    if keyword == "pattern" and isinstance(value, str):
        return to_rust(value)
    if keyword == "patternProperties" and isinstance(value, dict):
        return _named_by_patterns(value)
    if keyword in _NAMED and isinstance(value, dict):
        return {name: _schema(each) for name, each in value.items()}
    return _schema(value)


def _named_by_patterns(schemas: dict[str, Any]) -> dict[str, Any]:
    rewritten: dict[str, Any] = {}
    for pattern, schema in schemas.items():
        pattern = to_rust(pattern)
        while pattern in rewritten:
            # Two ways to write one pattern, each with demands of its own.
            pattern = f"(?:{pattern})"
        rewritten[pattern] = _schema(schema)
    return rewritten
