"""The seam between a model's arithmetic and the code that carries it out.

A model is written once, against `Backend`, as a sequence of eight operations over a ragged batch: the
tokens of all scheduled sequences laid end to end, without padding. What lies below the seam is the
backend's own: how weights are packed, how the KV cache is laid out, which kernels run.

Knows nothing of requests, sampling or scheduling. Shapes below: T tokens in the step, S sequences,
H query heads, K key/value heads, D the head's size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

PlanT = TypeVar("PlanT")
WeightT = TypeVar("WeightT")


@dataclass(frozen=True)
class AttentionSpec:
    """What a backend must know of a model's attention to lay out its KV cache and to rotate its heads."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inv_freq: torch.Tensor
    """Rotary frequencies, float32 [D / 2], radians a position."""

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0
        assert self.inv_freq.shape == (self.head_dim // 2,)


@dataclass(frozen=True)
class RaggedBatch:
    """One step's tokens, laid end to end: the first `query_lens[0]` belong to sequence 0, and so on."""

    token_ids: NDArray[np.int64]
    """[T]"""
    query_lens: NDArray[np.int64]
    """[S]: tokens of each sequence in this step, at least one."""
    context_lens: NDArray[np.int64]
    """[S]: tokens of each sequence whose keys and values are in the cache already."""
    block_tables: NDArray[np.int64]
    """[S, blocks of the longest sequence]: cache blocks in the order of the text; unused entries are 0."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """[T]: each token's index in its own sequence."""
        starts = np.cumsum(self.query_lens) - self.query_lens
        positions: NDArray[np.int64] = np.arange(len(self.token_ids)) + np.repeat(
            self.context_lens - starts, self.query_lens
        )
        return positions


class Normed(NamedTuple):
    """What `add_rms_norm` returns: the normalised sum, and the sum itself as the next residual."""

    hidden: torch.Tensor
    residual: torch.Tensor


class Backend(ABC, Generic[PlanT, WeightT]):
    """Eight operations, three ways to pack weights, one KV cache. All tensors live on `device` in `dtype`."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    # -- once, when the model is loaded ---------------------------------------------------------------

    def pack_vector(self, weight: torch.Tensor) -> torch.Tensor:
        """Norm weights and embedding tables: moved to the device and dtype, otherwise as they are."""
        return weight.to(device=self.device, dtype=self.dtype).contiguous()

    @abstractmethod
    def pack_linear(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None) -> WeightT:
        """Packs [out_i, in] matrices that read the same input into one, outputs side by side in order."""

    @abstractmethod
    def pack_gated(
        self, gate: torch.Tensor, up: torch.Tensor, biases: Sequence[torch.Tensor] | None
    ) -> WeightT:
        """Packs the two [intermediate, hidden] matrices of a gated MLP for `gated_linear`."""

    @abstractmethod
    def allocate_kv_cache(self, spec: AttentionSpec, num_blocks: int, block_size: int) -> None:
        """Lays out `num_blocks` blocks of `block_size` tokens for every layer; called once."""

    def kv_bytes_per_block(self, spec: AttentionSpec, block_size: int) -> int:
        """Bytes one block takes over all layers."""
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * block_size * self.dtype.itemsize

    # -- once a step ----------------------------------------------------------------------------------

    @abstractmethod
    def begin_step(self, batch: RaggedBatch) -> PlanT:
        """Everything about a step that no layer changes: positions, slots, gather indices, masks, angles."""

    # -- the operations -------------------------------------------------------------------------------

    @abstractmethod
    def embedding(self, plan: PlanT, table: torch.Tensor) -> torch.Tensor:
        """The rows of `table` [vocab, hidden] for the step's tokens: [T, hidden]."""

    @abstractmethod
    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`hidden / sqrt(mean(hidden^2) + eps) * weight` over the last axis, the mean in float32 or wider."""

    @abstractmethod
    def add_rms_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> Normed:
        """`rms_norm` of the sum of a block's output and the residual stream, and that sum."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """x [T, in] -> [T, sum of outputs]."""

    @abstractmethod
    def gated_linear(self, x: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """`silu(gate(x)) * up(x)`: [T, hidden] -> [T, intermediate]."""

    @abstractmethod
    def rope_and_cache(self, plan: PlanT, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values to the cache.

        qkv [T, (H + 2K) * D], heads in the order q, k, v. Returns the rotated queries [T, H, D]. Rotation
        pairs the first half of a head with its second half (RoFormer, Su et al. 2021, in the layout of
        the Hugging Face checkpoints).
        """

    @abstractmethod
    def paged_attention(self, plan: PlanT, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Causal attention of each query [T, H, D] over its own sequence's cached tokens: [T, H * D]."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """hidden [N, hidden] -> [N, vocab]; called with the last token of the sequences that sample."""
