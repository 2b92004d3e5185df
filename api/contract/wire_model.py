"""Base classes of everything that crosses a process boundary."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

FIELD_FAULT: Final = "pagefleet_field"
"""pydantic's type of the errors from :func:`wrong`."""


class WireModel(BaseModel):
    """A frozen model that refuses wrong types and unknown fields instead of converting or ignoring them."""

    # Build each model at its first use: importing stays fast.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True)


class StoredModel(WireModel):
    """A model that another version of pagefleet may have written. Unknown fields are newer: ignored."""

    model_config = ConfigDict(extra="ignore")

    v: int = 1
    """The protocol version of the writer; 1 if absent, also for a reader of a later version."""


def wrong(param: str, message: str) -> PydanticCustomError:
    """Return an error of a model's validator that names the field at fault."""
    return PydanticCustomError(FIELD_FAULT, message, {"param": param})
