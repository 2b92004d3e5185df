"""Backend: the interface between a model and the code that computes its operations.

A model is written once, with the eight operations of `Backend`, over a ragged batch: the tokens of all
scheduled sequences laid end to end, without padding. The backend decides how weights are packed, how the KV
cache is laid out, and which kernels run.

Does not know requests, sampling or scheduling. Shapes below: T tokens in the step, S sequences, H query
heads, K key/value heads, D elements per head.
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
    """The properties of a model's attention that determine the KV cache and the rotation of heads."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inv_freq: torch.Tensor
    """Rotary frequencies, float32 [D / 2], in radians per position."""

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0
        assert self.inv_freq.shape == (self.head_dim // 2,)


@dataclass(frozen=True)
class RaggedBatch:
    """The tokens of one step, laid end to end: the first `query_lens[0]` belong to sequence 0, and so on."""

    token_ids: NDArray[np.int64]
    """[T]"""
    query_lens: NDArray[np.int64]
    """[S]: number of tokens of each sequence in this step, at least 1."""
    context_lens: NDArray[np.int64]
    """[S]: number of tokens of each sequence whose keys and values are already in the cache."""
    block_tables: NDArray[np.int64]
    """[S, blocks of the longest sequence]: the cache blocks of each sequence, in order; unused entries are
    0."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """[T]: the index of each token in its sequence."""
        starts = np.cumsum(self.query_lens) - self.query_lens
        positions: NDArray[np.int64] = np.arange(len(self.token_ids)) + np.repeat(
            self.context_lens - starts, self.query_lens
        )
        return positions


class Normed(NamedTuple):
    """The result of `add_rms_norm`: the normalised sum, and the sum itself, which is the next residual."""

    hidden: torch.Tensor
    residual: torch.Tensor


class Backend(ABC, Generic[PlanT, WeightT]):
    """The operations of a model on one kind of device, its packed weights and its KV cache.

    All tensors are on `device` in `dtype`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    # -- loading the model ---------------------------------------------------------------

    def pack_vector(self, weight: torch.Tensor) -> torch.Tensor:
        """Return norm weights or an embedding table on the device, in the dtype."""
        return weight.to(device=self.device, dtype=self.dtype).contiguous()

    @abstractmethod
    def pack_linear(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None) -> WeightT:
        """Pack matrices [out_i, in] with the same input into one; their outputs are concatenated in order."""

    @abstractmethod
    def pack_gated(
        self, gate: torch.Tensor, up: torch.Tensor, biases: Sequence[torch.Tensor] | None
    ) -> WeightT:
        """Pack the two matrices [intermediate, hidden] of a gated MLP for `gated_linear`."""

    @abstractmethod
    def allocate_kv_cache(self, spec: AttentionSpec, num_blocks: int, block_size: int) -> None:
        """Allocate `num_blocks` blocks of `block_size` tokens for each layer; a previous cache is dropped."""

    def kv_bytes_per_block(self, spec: AttentionSpec, block_size: int) -> int:
        """Return the bytes of one block, over all layers."""
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * block_size * self.dtype.itemsize

    # -- once per step ----------------------------------------------------------------------------------

    @abstractmethod
    def begin_step(self, batch: RaggedBatch) -> PlanT:
        """Return what all layers of a step share: positions, slots, gather indices, masks, angles."""

    # -- the operations -------------------------------------------------------------------------------

    @abstractmethod
    def embedding(self, plan: PlanT, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of `table` [vocab, hidden] for the tokens of the step: [T, hidden]."""

    @abstractmethod
    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return `hidden / sqrt(mean(hidden^2) + eps) * weight` over the last axis; the mean in float32 or
        wider."""

    @abstractmethod
    def add_rms_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> Normed:
        """Return `rms_norm(hidden + residual)` and `hidden + residual`."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """Multiply x [T, in] with the packed matrices and add the biases: [T, sum of outputs]."""

    @abstractmethod
    def gated_linear(self, x: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """Return `silu(gate(x)) * up(x)`: [T, hidden] -> [T, intermediate]."""

    @abstractmethod
    def rope_and_cache(self, plan: PlanT, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """Rotate queries and keys, write keys and values to the cache; return the rotated queries [T, H, D].

        qkv is [T, (H + 2K) * D], with heads in the order q, k, v. Rotation pairs the first half of a head
        with its second half (RoFormer, Su et al. 2021, in the layout of Hugging Face checkpoints).
        """

    @abstractmethod
    def paged_attention(self, plan: PlanT, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Return the causal attention of each query [T, H, D] over the cached tokens of its sequence: [T, H
        * D]."""

    @abstractmethod
    def logits(self, hidden: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]; N counts only the rows that are
        needed."""
