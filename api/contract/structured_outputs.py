"""What a generated text must be, as a request says it. Its shape is checked here; the worker compiles it."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self, TypedDict

from pydantic import Field, JsonValue, model_validator

from pagefleet.api.contract.wire_model import WireModel

_KINDS: Final = ("json_schema", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(WireModel):
    """Exactly one kind. The whole text is meant, from its first character to its last."""

    json_schema: dict[str, JsonValue] | bool | None = Field(None, description="JSON that is valid against it")
    json_object: bool = Field(False, description="any JSON object")
    regex: str | None = Field(None, min_length=1, description="matches the whole text; no look-around")
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="one of these texts"
    )
    grammar: str | None = Field(
        None, min_length=1, description="Lark, begun with `start:`, or EBNF, begun with `root ::=`"
    )
    wind_down: bool = Field(
        False,
        description="JSON: the last quarter of max_tokens only closes what is open",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in _KINDS if getattr(self, name) is not None and name != "json_object"]
        given += ["json_object"] if self.json_object else []
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}, not {' and '.join(given) or 'none'}")
        if self.wind_down and not given[0].startswith("json"):
            raise ValueError(f"wind_down is for json_schema and json_object, not for {given[0]}")
        return self


class StructuredOptions(TypedDict, total=False):
    """:class:`StructuredOutputs` as a mapping, for editors and type checkers."""

    json_schema: dict[str, Any] | bool
    json_object: bool
    regex: str
    choice: list[str]
    grammar: str
    wind_down: bool
