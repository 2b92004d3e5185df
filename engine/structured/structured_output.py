"""StructuredOutput: the form that a generated text must have. grammar.py compiles it to tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pagefleet.engine.errors import InvalidRequestError

__all__ = ["PARAM", "StructuredOutput"]

PARAM: Final = "structured_outputs"
"""The parameter that errors name."""

KINDS: Final = ("json_schema", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """The form of the whole text, from its first character. Set exactly one field besides `wind_down`.

    JSON is written with at most one space, and only after a comma or a colon. Names and meanings are vLLM's,
    except that vLLM calls `json_schema` `json`.

    Raises InvalidRequestError for none or several of the fields, or a `wind_down` without JSON.
    """

    json_schema: Mapping[str, Any] | bool | str | None = None
    """JSON that is valid against this schema, which may be given as its JSON text."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    """A text that this matches as a whole. Syntax of ECMA-262, without look-around and back-references."""
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A text of this context-free grammar: Lark's notation with a rule `start:`, or EBNF (GBNF) with a rule
    `root ::=`."""
    wind_down: bool = False
    """For JSON: in the last quarter of `max_tokens`, begin nothing new and close what is open. The text is
    complete instead of cut off. Such a text ends with the finish reason "stop" and the stop reason
    "wind_down"."""

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            names = ", ".join(KINDS)
            raise InvalidRequestError(
                f"{PARAM} must have exactly one of {names}, not {' and '.join(given) or 'none'}.",
                "invalid_value",
                PARAM,
            )
        if self.wind_down and not given[0].startswith("json"):
            raise InvalidRequestError(
                f"{PARAM}.wind_down works with json_schema and json_object, not with {given[0]}; remove it.",
                "invalid_value",
                PARAM,
            )

    @property
    def kind(self) -> str:
        """The name of the field that is set."""
        return self._given()[0]

    @property
    def source(self) -> str:
        """The field's value as text. Equal texts of one kind mean the same.

        Raises InvalidRequestError if the value is not JSON.
        """
        value = getattr(self, self.kind)
        if isinstance(value, str):
            return value
        try:
            return json.dumps(list(value) if self.kind == "choice" else value)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"{PARAM}.{self.kind} is not JSON: {error}.", "invalid_type", PARAM
            ) from None

    def _given(self) -> list[str]:
        # `false` is a schema too (nothing satisfies it), so compare with None.
        names = [name for name in KINDS if name != "json_object" and getattr(self, name) is not None]
        return [*names, "json_object"] if self.json_object else names
