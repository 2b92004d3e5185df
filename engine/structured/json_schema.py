"""prepare_schema: rewrites a JSON schema so that the grammar library follows it exactly.

The library misreads some schemas: numbers beyond a double, patterns in JSON schema's dialect, names that may
repeat. What can be expressed in its terms is rewritten; the rest is refused, with the place in the schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final, NamedTuple

from pagefleet.engine.structured.ecma_regex import to_rust
from pagefleet.engine.structured.schema_graph import Part, SchemaGraph

__all__ = ["PreparedSchema", "prepare_schema"]

MAX_EXACT: Final = 2**53
"""The library computes in doubles."""
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_MULTIPLE: Final = 2**32
FORMATS: Final = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
)
"""Formats that are enforced; all others are annotations, as JSON schema allows."""
_DAY: Final = (
    "(?:[0-9]{4}-(?:0[13-9]|1[0-2])-[0-9]{2}|[0-9]{4}-02-(?:[01][0-9]|2[0-8])"
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_CLOCK: Final = "[0-9]{2}:[0-9]{2}:[0-5][0-9]"
_NARROWED: Final = {"date": f"^{_DAY}$", "date-time": f"^{_DAY}.{_CLOCK}", "time": f"^{_CLOCK}"}
"""The library's own patterns allow 29 February in any year and a leap second at any time."""
_CONTROL: Final = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f]")
"""Characters that a JSON text can only contain as `\\u....`."""
_OLD_DRAFT: Final = re.compile(r"draft-0[3-7]|2019-09")


class PreparedSchema(NamedTuple):
    text: str
    has_unicode_escapes: bool
    """Whether strings may contain `\\u....`. The library does not notice that a name with escapes repeats one
    that the object already has."""
    names: list[str]
    """All names of properties in the schema."""
    patterns: list[Part]
    """The closed schemas with `patternProperties`: beyond `properties`, only the patterns allow names."""


def prepare_schema(source: str) -> PreparedSchema:
    """Return the rewritten schema. Raise ValueError, with the place, if it cannot be followed exactly."""
    try:
        root = json.loads(source, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply; flatten it") from None
    if root is False:
        raise ValueError("Unsatisfiable schema: it is false")
    if not isinstance(root, dict):
        return PreparedSchema("{}" if root is True else source, True, [], [])
    # The library would read options from it, one of which ignores keywords that it does not implement.
    root.pop("x-guidance", None)
    graph = SchemaGraph(root)
    if (place := graph.find_endless()) is not None:
        raise ValueError(
            f"at {place}: it requires itself, so no finite text satisfies it; "
            "make a property optional, or add a branch that ends"
        )
    _check_multiples(graph)
    composed, is_old = graph.composed(), bool(_OLD_DRAFT.search(str(root.get("$schema", ""))))
    for part in graph.parts:
        _check_numbers(part)
        if id(part.schema) not in composed:
            _close(part.schema)
        _check_count(part)
        _rewrite(part.schema, is_old)
    names = sorted({name for part in graph.parts for name in _mapping(part.schema, "properties")})
    by_pattern = [part for part in graph.parts if _mapping(part.schema, "patternProperties")]
    return PreparedSchema(
        json.dumps(root),
        _has_unicode_escapes(graph),
        names,
        [part for part in by_pattern if not _is_open(part.schema)],
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_numbers(part: Part) -> None:
    for keyword in ("const", "enum", *_BOUNDS):
        for number in _numbers(part.schema.get(keyword)):
            if abs(number) > MAX_EXACT:
                raise ValueError(
                    f"at {part.place}/{keyword}: {number} is beyond 2^53, where doubles are not exact; "
                    "use a smaller bound or a string"
                )


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _check_multiples(graph: SchemaGraph) -> None:
    """Raise ValueError for values of `multipleOf` that the library cannot represent or combine.

    For schemas that apply together it multiplies them in 32 bits, and ignores the overflow.
    """
    found = {part.place: each for part in graph.parts for each in _numbers(part.schema.get("multipleOf"))}
    for place, number in found.items():
        if number <= 0 or not _is_read_exactly(float(number)):
            raise ValueError(
                f"at {place}/multipleOf: {number} cannot be checked exactly; "
                "use a positive number with fewer digits"
            )
    if not any(part.schema.keys() & {"allOf", "anyOf", "oneOf", "$ref"} for part in graph.parts):
        return
    exact = {Decimal(repr(number)) for number in found.values()}
    digits = max((-int(each.as_tuple().exponent) for each in exact), default=0)
    product = 1
    for each in exact:
        product *= int(each.scaleb(max(digits, 0)))
    if len(exact) > 1 and product >= _MAX_MULTIPLE:
        raise ValueError(
            f"at {next(iter(found))}/multipleOf: the schema's multipleOf values cannot be combined exactly; "
            "use numbers with fewer digits"
        )


def _is_read_exactly(number: float) -> bool:
    """Return whether the library, which finds digits and exponent in this way, gets the same number."""
    value, exponent = number, 0
    while value % 1 and value < _MAX_MULTIPLE:
        value, exponent = value * 10, exponent + 1
    return value < _MAX_MULTIPLE and Decimal(int(value)).scaleb(-exponent) == Decimal(repr(number))


def _mapping(schema: dict[str, Any], keyword: str) -> dict[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}


def _is_open(schema: dict[str, Any]) -> bool:
    return schema.get("additionalProperties") is not False


def _close(schema: dict[str, Any]) -> None:
    """Set additionalProperties to false unless the schema gives it or needs other names."""
    if not schema.keys() & {"properties", "patternProperties"} or "additionalProperties" in schema:
        return
    properties, required = _mapping(schema, "properties"), schema.get("required")
    if isinstance(required, list) and not all(name in properties for name in required):
        return
    if "patternProperties" not in schema and _number_of(schema, "minProperties") > len(properties):
        return
    schema["additionalProperties"] = False


def _number_of(schema: dict[str, Any], keyword: str) -> int:
    value = schema.get(keyword)
    return value if isinstance(value, int) else 0


def _check_count(part: Part) -> None:
    """Raise ValueError if `minProperties` counts names that may repeat: a repeated name counts once."""
    schema = part.schema
    if _is_open(schema) or "patternProperties" in schema:
        required = schema.get("required")
        num_certain = len(set(required)) if isinstance(required, list) else 0
        if _number_of(schema, "minProperties") > num_certain + 1:
            raise ValueError(
                f"at {part.place}/minProperties: names that properties does not list may repeat; "
                "list and require them, or lower minProperties"
            )


def _rewrite(schema: dict[str, Any], is_old: bool) -> None:
    if isinstance(schema.get("pattern"), str):
        schema["pattern"] = to_rust(schema["pattern"])
    if isinstance(schema.get("patternProperties"), dict):
        schema["patternProperties"] = _named_by_patterns(schema["patternProperties"])
    if isinstance(name := schema.get("format"), str):
        if name not in FORMATS:
            del schema["format"]
        elif name in _NARROWED:
            _narrow(schema, _NARROWED[name])
    if not is_old and not isinstance(schema.get("items"), list):
        # Since draft 2020-12 it has no meaning, but it would make the library ignore prefixItems.
        schema.pop("additionalItems", None)


def _narrow(schema: dict[str, Any], pattern: str) -> None:
    if "pattern" not in schema:
        schema["pattern"] = pattern
    elif isinstance(schema.get("allOf", []), list):
        schema["allOf"] = [*schema.get("allOf", []), {"pattern": pattern}]


def _named_by_patterns(schemas: dict[str, Any]) -> dict[str, Any]:
    rewritten: dict[str, Any] = {}
    for pattern, schema in schemas.items():
        pattern = to_rust(pattern)
        while pattern in rewritten:
            # Two spellings of one pattern, each with its own schema: keep both.
            pattern = f"(?:{pattern})"
        rewritten[pattern] = schema
    return rewritten


def _has_unicode_escapes(graph: SchemaGraph) -> bool:
    """Return False if a name written with escapes could repeat another or evade its pattern.

    Raises ValueError if the schema also has constants that need escapes.
    """
    parts = graph.parts
    mixed = [
        part
        for part in parts
        if _is_open(part.schema) and part.schema.keys() & {"properties", "patternProperties", "required"}
    ]
    if not mixed:
        return True
    for part in parts:
        for keyword in ("const", "enum"):
            if any(_CONTROL.search(text) for text in _texts(part.schema.get(keyword))):
                raise ValueError(
                    f"at {part.place}/{keyword}: control characters are not supported together with the "
                    f"open object at {mixed[0].place}; set additionalProperties to false there"
                )
    return False


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts(each)
