"""Schemas made at random from the keywords that are supported, and texts made at random under them."""

from __future__ import annotations

import random
from typing import Any

from pagefleet.engine import Grammar

NAMES = ["a", "b", "ab", "x1", "x-1", '"q"', "é", "a\\b", "\n", ""]
PATTERNS = [r"^a", "^b", r"^x\d+$", "^[a-z]{1,3}$", ".", r"^\w+$", "a|b", "^(foo|ba[rz])?$", r"\s",
            "^[ab]$", "^a$", r"^[^\s]+$", '^"', r"^\d{2,4}-\d{2}$", r"^[\u00e9]", "^$", ""]  # fmt: skip
FORMATS = ["date-time", "time", "date", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "int64", "colour"]
STRINGS = ["", "a", "ab", '"', "\\", "é", "日本", "\n\t", "\x00\x1f", "a/b", "😀", "x" * 30, " ", "\u2028"]
EDGES = [0, 1, -1, 10, 99, 0.1, 0.07, 0.29, 1.1, 2.0, -0.5, 1e-7, 0.30000000000000004, 1 / 3, 1e21, -1e19,
         2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**63 - 1, -(2**63), 2**64, 10**20]  # fmt: skip
KINDS = ["null", "boolean", "number", "integer", "string", "array", "object"]
OLD = "http://json-schema.org/draft-07/schema#"


class SchemaGenerator:
    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def schema(self) -> Any:
        self._is_old = self._chance(0.3)
        self._defs = ["d0", "d1"] if self._chance(0.4) else []
        schema = self._schema(self._rng.choice([0, 1, 1, 2, 2, 3]))
        if isinstance(schema, dict):
            if self._defs:
                schema["$defs"] = {name: self._schema(2) for name in self._defs}
            if self._is_old:
                schema["$schema"] = OLD
        return schema

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    def _some(self, keywords: dict[str, Any], probability: float) -> dict[str, Any]:
        return {name: make() for name, make in keywords.items() if self._chance(probability)}

    def _schema(self, depth: int) -> Any:
        if self._chance(0.06):
            return self._chance(0.8)
        kinds = self._rng.sample(KINDS, 1 if self._chance(0.8) else self._rng.randint(1, 3))
        if depth > 0 and self._chance(0.4):
            kinds = ["object"]
        parts = [{"type": kinds[0] if len(kinds) == 1 else kinds}] if self._chance(0.85) else [{}]
        parts += [self._of_kind(kind, depth) for kind in kinds]
        parts += [{"const": self._value(2)}] * self._chance(0.08)
        parts += [{"enum": [self._value(2) for _ in range(self._rng.randint(1, 4))]}] * self._chance(0.12)
        if depth > 0:
            for keyword, probability in (("anyOf", 0.12), ("allOf", 0.08), ("oneOf", 0.06)):
                parts += [{keyword: self._schemas(depth)}] * self._chance(probability)
        if self._defs and self._chance(0.12):
            parts.append({"$ref": f"#/$defs/{self._rng.choice(self._defs)}"})
        parts += [{"title": "t", "default": self._value(1), "x-y": 1}] * self._chance(0.05)
        self._rng.shuffle(parts)
        return {name: value for part in parts for name, value in part.items()}

    def _schemas(self, depth: int) -> list[Any]:
        return [self._schema(depth - 1) for _ in range(self._rng.randint(1, 3))]

    def _of_kind(self, kind: str, depth: int) -> dict[str, Any]:
        if kind in ("number", "integer"):
            bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
            found = self._some(dict.fromkeys(bounds, self._number), 0.25)
            return found | self._some({"multipleOf": lambda: abs(self._number()) or 1}, 0.25)
        if kind == "string":
            choose = self._rng.choice
            lengths = self._some({"minLength": lambda: self._rng.randint(0, 5)}, 0.3)
            lengths |= self._some({"maxLength": lambda: self._rng.randint(0, 12)}, 0.3)
            patterns = self._some({"pattern": lambda: choose(PATTERNS)}, 0.4)
            return lengths | patterns | self._some({"format": lambda: choose(FORMATS)}, 0.2)
        if depth > 0 and kind == "array":
            return self._array(depth)
        return self._object(depth) if depth > 0 and kind == "object" else {}

    def _array(self, depth: int) -> dict[str, Any]:
        found = self._some({"items": lambda: self._schema(depth - 1)}, 0.6)
        found |= self._some({"prefixItems": lambda: self._schemas(depth)}, 0.3)
        found |= self._some({"minItems": lambda: self._rng.randint(0, 4)}, 0.3)
        found |= self._some({"maxItems": lambda: self._rng.randint(0, 5)}, 0.3)
        if self._is_old and self._chance(0.3):
            found["items"] = self._schemas(depth)
        if not self._is_old or isinstance(found.get("items"), list):
            found |= self._some({"additionalItems": lambda: self._schema(depth - 1)}, 0.2)
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        def named(names: list[str], most: int) -> dict[str, Any]:
            count = self._rng.randint(0, most)
            return {self._rng.choice(names): self._schema(depth - 1) for _ in range(count)}

        found = self._some({"properties": lambda: named(NAMES, 4)}, 0.8)
        found |= self._some({"required": lambda: self._rng.sample(NAMES, self._rng.randint(0, 2))}, 0.4)
        found |= self._some({"additionalProperties": lambda: self._schema(depth - 1)}, 0.35)
        found |= self._some({"patternProperties": lambda: named(PATTERNS, 2)}, 0.3)
        found |= self._some({"minProperties": lambda: self._rng.randint(0, 3)}, 0.12)
        return found | self._some({"maxProperties": lambda: self._rng.randint(0, 4)}, 0.12)

    def _number(self) -> int | float:
        if self._chance(0.4):
            return self._rng.choice(EDGES)
        return self._rng.randint(-12, 40) if self._chance(0.7) else round(self._rng.uniform(-20, 20), 3)

    def _value(self, depth: int) -> Any:
        kind = self._rng.randrange(6 if depth else 4)
        if kind == 4:
            return [self._value(depth - 1) for _ in range(self._rng.randint(0, 3))]
        if kind == 5:
            return {self._rng.choice(NAMES): self._value(depth - 1) for _ in range(self._rng.randint(0, 3))}
        return [None, self._chance(0.5), self._number(), self._rng.choice(STRINGS)][kind]


def eager_walk(grammar: Grammar, seed: int, num_free: int = 60, max_tokens: int = 500) -> tuple[bytes, bool]:
    """A text of random bytes that the grammar allows, many of them signs and escapes, then the shortest way
    out; and whether it ended. AssertionError: the grammar has nowhere to go."""
    rng = random.Random(seed)
    grammar.limit(4 * num_free // 3)
    text = bytearray()
    for position in range(max_tokens):
        if grammar.is_finished:
            break
        allowed = [int(each) for each in grammar.allowed_token_ids(position)]
        assert allowed, f"nothing may follow {bytes(text)!r}"
        liked = [
            each for each in allowed if each < 256 and each in rng.choice([b'"{}[],:', b"abx1-_.", b"\\u0"])
        ]
        token = rng.choice(liked if liked and not grammar.winds_down(position) else allowed)
        assert (error := grammar.accept(token)) is None, f"after {bytes(text)!r}: {error}"
        text += bytes([token]) if token < 256 else b""
    assert grammar.error is None, f"after {bytes(text)!r}: {grammar.error}"
    return bytes(text), grammar.is_finished
