"""GGUFFamily: how the GGUF files of one architecture differ from checkpoints in Hugging Face format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["EXPERT", "GGUFFamily"]

EXPERT: Final = "{expert}"
"""The place of the expert's number in a name: the tensor has one matrix for each expert."""


@dataclass(frozen=True)
class GGUFFamily:
    """One architecture of GGUF, and how its files differ from the checkpoint in Hugging Face format."""

    model_type: str
    architecture: str
    layer: dict[str, str]
    """The modules of each layer: names in GGUF and in transformers. All must have a weight."""
    optional: dict[str, str] = field(default_factory=dict)
    """The same for modules that only some models of the family have."""
    keys: dict[str, str] = field(default_factory=dict)
    """config.json's name -> GGUF's key, for values that only this family has."""
    constants: dict[str, Any] = field(default_factory=dict)
    """Values of config.json that GGUF files do not have, because they are the same in the whole family."""
    eps: str = "rms_norm_eps"
    """config.json's name for the epsilon of the norms."""
    interleaves: bool = False
    """Whether the rows of queries and keys are stored in pairs (i, i + D / 2) of each head, for RoPE."""
    norm_shift: float = 0.0
    """What the converter adds to the weights of norms."""
    full_attention_interval: int = 0
    """If not 0: all layers have sliding windows, except every n-th."""
