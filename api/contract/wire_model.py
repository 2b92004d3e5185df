"""The base of everything that crosses a process boundary."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

FIELD_FAULT: Final = "pagefleet_field"
"""pydantic's error type for a complaint of a whole model that is one field's fault all the same."""


class WireModel(BaseModel):
    """Frozen, strict, closed: a wrong type or an unknown field is an error, never a guess."""

    # Built at the first use of each model, not at import.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)


class StoredModel(WireModel):
    """Written by one version of pagefleet and read by another: unknown fields are newer, not wrong."""

    model_config = ConfigDict(extra="ignore")

    v: int = 1
    """The protocol version that wrote it; absent means 1, whatever the reader speaks."""


def wrong(param: str, message: str) -> PydanticCustomError:
    """A complaint of a whole model that is one field's fault all the same."""
    return PydanticCustomError(FIELD_FAULT, message, {"param": param})
