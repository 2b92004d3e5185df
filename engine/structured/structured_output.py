"""StructuredOutput: what a generated text must be. Knows nothing of tokens: grammar.py compiles it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pagefleet.engine.errors import InvalidRequestError

__all__ = ["PARAM", "StructuredOutput"]

PARAM: Final = "structured_outputs"
"""What a complaint about any of this names."""

KINDS: Final = ("json_schema", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """Exactly one of its fields; else InvalidRequestError. The whole text is meant, from its first character.

    JSON is written compactly: at most one space, and only after a comma or a colon. Names and meanings are
    vLLM's, except `json_schema`, there `json`.
    """

    json_schema: Mapping[str, Any] | bool | str | None = None
    """JSON that is valid against this schema, a mapping or its text."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """A text that this matches as a whole. Rust's syntax: no look-around, no back-references."""
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A context-free grammar: Lark's notation, begun with `start:`, or EBNF (GBNF), begun with `root ::=`."""
    wind_down: bool = False
    """For JSON: in the last quarter of what `max_tokens` allows, nothing new is begun and what is open is
    closed, so that the text is whole where it would have been cut off. Such a text ends with the finish
    reason "stop" and the stop reason "wind_down"."""

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            names = ", ".join(KINDS)
            raise InvalidRequestError(
                f"structured_outputs takes exactly one of {names}, not {' and '.join(given) or 'none'}.",
                "invalid_value",
                PARAM,
            )
        if self.wind_down and not given[0].startswith("json"):
            raise InvalidRequestError(
                f"wind_down is for json_schema and json_object, not for {given[0]}.", "invalid_value", PARAM
            )

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return self._given()[0]

    @property
    def source(self) -> str:
        """What is given, as a text: equal texts of one kind mean the same."""
        value = getattr(self, self.kind)
        if isinstance(value, str):
            return value
        try:
            return json.dumps(list(value) if self.kind == "choice" else value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{self.kind} is not JSON: {error}.", "invalid_type", PARAM) from None

    def _given(self) -> list[str]:
        # The schema `false` is a schema too, the one that nothing satisfies.
        names = [name for name in KINDS if name != "json_object" and getattr(self, name) is not None]
        return [*names, "json_object"] if self.json_object else names
