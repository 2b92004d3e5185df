"""SchemaGraph: the schemas within a JSON schema, their places, and which of them constrain the same value."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

__all__ = ["NAMED", "Part", "SchemaGraph", "children"]

NAMED: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names that the schema's author chose, not keywords."""
_DEFINITIONS: Final = frozenset({"$defs", "definitions"})
_DATA: Final = frozenset({"const", "enum", "default", "example", "examples", "required", "type"})
_BRANCHES: Final = ("allOf", "anyOf", "oneOf")
_NAMES: Final = frozenset({"properties", "patternProperties"})


class Part(NamedTuple):
    place: str
    """A JSON pointer, such as `#/properties/a`."""
    schema: dict[str, Any]


def children(part: Part, *, definitions: bool = True) -> Iterator[Part]:
    """Yield the schemas directly within one; without `definitions`, not those that are only defined."""
    for keyword, value in part.schema.items():
        if keyword in _DATA or keyword.startswith("x-") or (keyword in _DEFINITIONS and not definitions):
            continue
        place = f"{part.place}/{_escaped(keyword)}"
        if isinstance(value, dict) and keyword in NAMED:
            found: Iterable[tuple[str, Any]] = (
                (f"{place}/{_escaped(name)}", each) for name, each in value.items()
            )
        elif isinstance(value, list):
            found = ((f"{place}/{index}", each) for index, each in enumerate(value))
        else:
            found = [(place, value)]
        yield from (Part(at, each) for at, each in found if isinstance(each, dict))


class SchemaGraph:
    """All schemas that are reachable from the root, in `parts`.

    Args:
        root: parsed JSON. Its parts must be distinct objects, because they are known by their `id`.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self.parts = list(_reachable([Part("#", root)], children))
        self._by_id = {id(part.schema): part for part in self.parts}

    def composed(self) -> set[int]:
        """Return the `id` of each schema whose object other schemas describe too.

        Such a schema must not be closed: names that it does not mention may be theirs.
        """
        mentioning = self._mentioning()
        found: list[Part] = []
        for part in self.parts:
            groups = [[target] for target in self._target(part)]
            groups += [[each] for each in self._branches(part, "allOf")]
            groups += [self._branches(part, "anyOf"), self._branches(part, "oneOf")]
            with_names = sum(any(id(each.schema) in mentioning for each in group) for group in groups)
            has_own = bool(_NAMES & part.schema.keys())
            if with_names + has_own > 1:
                found += [part] if has_own else []
                found += [each for group in groups for each in group]
        return {id(part.schema) for part in _reachable(found, self._applied)}

    def find_endless(self) -> str | None:
        """Return the place of a schema that requires itself, so that no finite text satisfies it, or None."""
        parents = defaultdict(list)
        for part in self.parts:
            for child in self._used(part):
                parents[id(child.schema)].append(part)
        finite: set[int] = set()
        waiting = list(self.parts)
        while waiting:
            part = waiting.pop()
            if id(part.schema) not in finite and self._ends(part, finite):
                finite.add(id(part.schema))
                waiting += parents[id(part.schema)]
        used = _reachable([Part("#", self._root)], self._used)
        return next((part.place for part in used if id(part.schema) not in finite), None)

    def _mentioning(self) -> set[int]:
        """Return the `id` of each schema that names properties, itself or through schemas that it applies."""
        users = defaultdict(list)
        for part in self.parts:
            for each in self._applied(part):
                users[id(each.schema)].append(part)
        own = [part for part in self.parts if _NAMES & part.schema.keys()]
        return {id(part.schema) for part in _reachable(own, lambda part: users[id(part.schema)])}

    def _applied(self, part: Part) -> list[Part]:
        """Return the schemas that constrain the same value as this one."""
        branches = [each for keyword in _BRANCHES for each in self._branches(part, keyword)]
        return [*self._target(part), *branches]

    def _used(self, part: Part) -> list[Part]:
        return [*children(part, definitions=False), *self._target(part)]

    def _ends(self, part: Part, finite: set[int]) -> bool:
        """Return whether a finite text satisfies this schema, if one satisfies each of the `finite` ones."""
        schema = part.schema
        if "const" in schema or "enum" in schema:
            return True
        required = [*self._target(part), *self._branches(part, "allOf"), *self._inside(part)]
        if any(id(each.schema) not in finite for each in required):
            return False
        for keyword in ("anyOf", "oneOf"):
            options = schema.get(keyword)
            if isinstance(options, list) and options:
                known = self._branches(part, keyword)
                if len(known) == len(options) and not any(id(each.schema) in finite for each in known):
                    return False
        return True

    def _inside(self, part: Part) -> list[Part]:
        """Return the schemas of the values that every value of this one contains."""
        schema = part.schema
        if schema.get("type") == "object" and isinstance(schema.get("required"), list):
            properties = schema.get("properties")
            named = properties if isinstance(properties, dict) else {}
            names = [name for name in schema["required"] if isinstance(name, str)]
            values = [named.get(name, schema.get("additionalProperties")) for name in names]
        elif schema.get("type") == "array" and isinstance(schema.get("minItems"), int):
            prefix = schema.get("prefixItems")
            first = prefix if isinstance(prefix, list) else []
            count = schema["minItems"]
            values = first[:count] + [schema.get("items")] * (count > len(first))
        else:
            return []
        return [self._by_id[id(each)] for each in values if id(each) in self._by_id]

    def _branches(self, part: Part, keyword: str) -> list[Part]:
        value = part.schema.get(keyword)
        options = value if isinstance(value, list) else []
        return [self._by_id[id(each)] for each in options if id(each) in self._by_id]

    def _target(self, part: Part) -> list[Part]:
        """Return the schema that `$ref` points to; nothing if it is not a pointer into this document."""
        reference = part.schema.get("$ref")
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return []
        found: Any = self._root
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return []
        return [self._by_id[id(found)]] if id(found) in self._by_id else []


def _reachable(begin: Iterable[Part], following: Callable[[Part], Iterable[Part]]) -> Iterator[Part]:
    """Yield each reachable schema once, beginning with `begin`."""
    waiting = list(begin)[::-1]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part.schema) not in seen:
            seen.add(id(part.schema))
            yield part
            waiting += [*following(part)][::-1]


def _escaped(name: str) -> str:
    """Return the name as a step of a JSON pointer, on one line."""
    return json.dumps(name, ensure_ascii=False)[1:-1].replace("~", "~0").replace("/", "~1")
