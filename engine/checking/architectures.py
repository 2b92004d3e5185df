"""Architecture: how the engine runs each causal language model of transformers. Does not import torch.

architectures.json has the table, which `make families-page` makes from tests of tiny checkpoints. It informs
users: what loads is decided by the registry and the probe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

__all__ = ["FILE", "Architecture", "Support", "read_architectures", "read_version"]

FILE: Final = Path(__file__).with_name("architectures.json")


class Support(StrEnum):
    NATIVE = "native"
    FALLBACK = "fallback"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type of transformers."""

    model_type: str
    """The value of `model_type` in config.json."""
    name: str
    """The value in `architectures` in config.json."""
    support: Support
    note: str = ""
    """The family's file in models/families/ if native; the reason if refused."""


def read_version() -> str:
    """Return the version of transformers that the table describes."""
    return str(json.loads(FILE.read_text(encoding="utf-8"))["transformers"])


def read_architectures() -> list[Architecture]:
    """Return the table, in the order of the model types."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["architectures"]
    return [Architecture(**{**row, "support": Support(row["support"])}) for row in rows]
