"""Structured outputs of a request: constraints on the generated text. The worker compiles them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self, TypedDict

from pydantic import Field, JsonValue, model_validator

from pagefleet.api.contract.wire_model import WireModel, wrong

_KINDS: Final = ("json_schema", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(WireModel):
    """A constraint on the whole text, from its first to its last character. Exactly one kind."""

    json_schema: dict[str, JsonValue] | bool | None = Field(
        None, description="a JSON schema: the text is JSON that is valid against it"
    )
    json_object: bool = Field(False, description="any JSON object")
    regex: str | None = Field(None, min_length=1, description="matches the whole text; without look-around")
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="one of these texts"
    )
    grammar: str | None = Field(
        None, min_length=1, description="Lark with a rule `start:`, or EBNF with a rule `root ::=`"
    )
    wind_down: bool = Field(
        False,
        description="JSON only: use the last quarter of max_tokens to close what is open",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in _KINDS if getattr(self, name) is not None and name != "json_object"]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise wrong("structured_outputs", f"give exactly one of {', '.join(_KINDS)} (got {got})")
        if self.wind_down and not given[0].startswith("json"):
            reason = f"needs json_schema or json_object (got {given[0]}); remove it"
            raise wrong("structured_outputs.wind_down", reason)
        return self


class StructuredOptions(TypedDict, total=False):
    """:class:`StructuredOutputs` as a mapping, for editors and type checkers."""

    json_schema: dict[str, Any] | bool
    json_object: bool
    regex: str
    choice: list[str]
    grammar: str
    wind_down: bool
