"""jsonschema's validators with the regular expressions that JSON schema has: ECMA-262's.

jsonschema itself searches with Python's `re`: U+001C is white space there, and `$` matches before a line end.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import regress

Errors = Iterator[jsonschema.ValidationError]


def validator_for(schema: Any) -> Any:
    """Formats included."""
    kind = _extended(jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator))
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def matches(pattern: str, text: str) -> bool:
    return _compiled(pattern).find(text) is not None


@cache
def _compiled(pattern: str) -> regress.Regex:
    try:
        return regress.Regex(pattern, flags="u")
    except regress.RegressError:
        # With a needless escape, as many schemas have one.
        return regress.Regex(pattern)


@cache
def _extended(kind: Any) -> Any:
    keywords = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return jsonschema.validators.extend(kind, keywords)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Errors:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!a} does not match {pattern!r}")


def _pattern_properties(validator: Any, schemas: dict[str, Any], instance: Any, schema: Any) -> Errors:
    if not validator.is_type(instance, "object"):
        return
    for pattern, each in schemas.items():
        for name, value in instance.items():
            if matches(pattern, name):
                yield from validator.descend(value, each, path=name, schema_path=pattern)


def _additional_properties(validator: Any, additional: Any, instance: Any, schema: Any) -> Errors:
    if not validator.is_type(instance, "object"):
        return
    for name, value in instance.items():
        patterns = schema.get("patternProperties", ())
        if name in schema.get("properties", ()) or any(matches(pattern, name) for pattern in patterns):
            continue
        if additional is False:
            yield jsonschema.ValidationError(f"the property {name!a} is not expected")
        else:
            yield from validator.descend(value, additional, path=name)
