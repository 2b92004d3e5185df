"""What the engine and its callers must know of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What decides whether two engines give the same tokens: hashes of what was loaded, and the rest."""

    weights: str
    tokenizer: str
    dtype: str
    backend: str
    version: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the engine and its callers must know of the model that is loaded."""

    name: str
    max_model_len: int
    """Prompt and output together, in tokens."""
    vocab_size: int
    """Rows of the embedding: ids 0 .. vocab_size - 1 are accepted and sampled."""
    eos_token_ids: tuple[int, ...]
    block_size: int
    num_blocks: int
    fingerprint: Fingerprint
    default_sampling: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint's makers recommend for sampling parameters that a request leaves out."""
