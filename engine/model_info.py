"""ModelInfo and Fingerprint: the properties of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The identity of a loaded model: two engines with equal fingerprints generate the same tokens."""

    weights: str
    """Hash of the weights."""
    tokenizer: str
    """Hash of the tokenizer's files, including the chat template."""
    dtype: str
    """The dtype that the model is computed in."""
    backend: str
    version: str
    """The version of pagefleet."""


@dataclass(frozen=True, slots=True)
class KVGroup:
    """The layers of a model that attend to equally many tokens: they use the same KV cache blocks."""

    window: int | None
    """How many tokens a query attends to, itself included. None: all."""
    num_blocks: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The properties of a loaded model that the engine and its callers use."""

    name: str
    max_model_len: int
    """The largest number of tokens of prompt and output together."""
    vocab_size: int
    """Rows of the embedding: token ids are 0 .. vocab_size - 1."""
    eos_token_ids: tuple[int, ...]
    block_size: int
    num_blocks: int
    """Blocks of the first KV group, which has no window if any group has none."""
    fingerprint: Fingerprint
    default_sampling: Mapping[str, Any] = field(default_factory=dict)
    """The sampling parameters that generation_config.json recommends, by SamplingParams' names."""
    kv_groups: tuple[KVGroup, ...] = ()
    """Default: one group without a window. `replace(info, num_blocks=...)` lowers all of them."""

    def __post_init__(self) -> None:
        groups = self.kv_groups or (KVGroup(None, self.num_blocks),)
        if groups[0].num_blocks != self.num_blocks:
            assert self.num_blocks < groups[0].num_blocks, self.num_blocks
            sizes = [min(group.num_blocks, self.num_blocks) for group in groups]
            groups = tuple(map(KVGroup, (group.window for group in groups), sizes))
        object.__setattr__(self, "kv_groups", groups)
