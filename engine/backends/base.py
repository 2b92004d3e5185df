"""Backend: the interface between a model and the code that computes its operations.

A model is written once, with the operations of `Backend`, over a ragged batch: the tokens of all scheduled
sequences laid end to end, without padding. The backend decides how weights are packed, how the KV cache is
laid out, and which kernels run.

Does not know requests, sampling or scheduling. Shapes below: T tokens in the step, S sequences, G KV groups
(layers with the same window), H query heads, K key/value heads, D elements per head, V elements per value
head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.model_spec import MlpSpec, ModelSpec, MoeSpec, NormSpec
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.sampler import Sampler

PlanT = TypeVar("PlanT")
WeightT = TypeVar("WeightT")


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
    """[G, S, blocks of the longest sequence]: the cache blocks of each sequence in each KV group, in order;
    unused entries, and those of blocks that the group's window has passed, are 0."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """[T]: the index of each token in its sequence."""
        starts = np.cumsum(self.query_lens) - self.query_lens
        positions: NDArray[np.int64] = np.arange(len(self.token_ids)) + np.repeat(
            self.context_lens - starts, self.query_lens
        )
        return positions


class Normed(NamedTuple):
    """The result of `add_norm`: the normalised sum, and the sum itself, which is the next residual."""

    hidden: torch.Tensor
    residual: torch.Tensor


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A norm's weight, [...] or with a leading axis of heads, and its bias if it has one, in float32 or the
    dtype of the backend."""

    spec: NormSpec
    weight: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """What `Backend.attend` needs besides queries, keys and values."""

    query_norm: NormWeights | None = None
    key_norm: NormWeights | None = None
    sinks: torch.Tensor | None = None
    """[H], in float32 or wider."""


@dataclass(frozen=True, slots=True)
class MoeWeights(Generic[WeightT]):
    """The weights of a mixture of experts."""

    spec: MoeSpec
    router: WeightT
    correction: torch.Tensor | None
    """[experts], see `route`."""
    gate_up: Sequence[WeightT]
    down: Sequence[WeightT]


class Backend(ABC, Generic[PlanT, WeightT]):
    """The operations of a model on one kind of device, its packed weights and its KV cache.

    All tensors are on `device` in `dtype`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in the model's fingerprint: it changes with everything that can change a token."""

    # -- loading the model ---------------------------------------------------------------

    def pack_table(self, table: torch.Tensor) -> torch.Tensor:
        """Return an embedding table [rows, hidden] on the device, in the dtype."""
        return table.to(device=self.device, dtype=self.dtype).contiguous()

    def pack_norm(self, spec: NormSpec, weight: torch.Tensor, bias: torch.Tensor | None) -> NormWeights:
        """Return a norm's weights. Those stored as a difference from 1 stay in float32, which is how the
        models that have them compute."""
        dtype = torch.promote_types(self.dtype, torch.float32) if spec.unit_offset else self.dtype
        weight = weight.to(device=self.device, dtype=dtype)
        if spec.unit_offset:
            weight = weight + 1
        return NormWeights(
            spec,
            weight.contiguous(),
            None if bias is None else bias.to(device=self.device, dtype=dtype).contiguous(),
        )

    @abstractmethod
    def pack_linear(self, matrices: Sequence[LinearWeights]) -> WeightT:
        """Pack matrices [out_i, in] with the same input into one; their outputs are concatenated in order.

        A missing bias is zero. The gate comes before `up` in a gated MLP, for `gated_linear`.
        """

    @abstractmethod
    def pack_tied_head(self, table: torch.Tensor, *, is_mapped: bool) -> WeightT:
        """Return an embedding that `pack_table` returned as the weights of `logits`.

        Args:
            is_mapped: whether the table is the checkpoint's file, mapped into memory. A packed copy is then
            the only one that uses memory of the process.
        """

    @abstractmethod
    def allocate_kv_cache(self, spec: ModelSpec, num_blocks: Sequence[int], block_size: int) -> None:
        """Allocate blocks of `block_size` tokens for each layer; a previous cache is dropped.

        Args:
            num_blocks: [G], for each of `spec.kv_windows`.
        """

    def kv_bytes_per_block(self, spec: ModelSpec, block_size: int) -> list[int]:
        """Return the bytes of one block, over all layers of each KV group."""
        sizes = [0] * len(spec.kv_windows)
        for index, layer in enumerate(spec.layers):
            num_elements = layer.attention.num_elements if layer.attention.causal else 0
            sizes[spec.kv_group(index)] += num_elements * block_size * self.dtype.itemsize
        return sizes

    def sampler(self) -> Sampler:
        """Return the sampler of this backend's logits."""
        return ReferenceSampler()

    # -- once per step ----------------------------------------------------------------------------------

    @abstractmethod
    def begin_step(self, batch: RaggedBatch) -> PlanT:
        """Return what the layers of a step share: positions, slots, gather indices, masks, angles."""

    @abstractmethod
    def tokens(self, plan: PlanT) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token ids and the positions of the step, each int64 [T]."""

    # -- the operations -------------------------------------------------------------------------------

    @abstractmethod
    def embedding(self, plan: PlanT, table: torch.Tensor) -> torch.Tensor:
        """Return the rows of `table` [vocab, hidden] for the tokens of the step: [T, hidden]."""

    @abstractmethod
    def position_embedding(self, plan: PlanT, table: torch.Tensor, offset: int) -> torch.Tensor:
        """Return the rows of `table` for the positions of the tokens, plus `offset`: [T, hidden]."""

    @abstractmethod
    def norm(self, hidden: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """Return `hidden` normalised over the last axis; mean and variance in float32 or wider."""

    @abstractmethod
    def add_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, norm: NormWeights | None, scale: float = 1.0
    ) -> Normed:
        """Return `norm(residual + scale * hidden)`, or the sum if there is no norm, and the sum."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """Multiply x [T, in] with the packed matrices and add the biases: [T, sum of outputs]."""

    @abstractmethod
    def activate(self, x: torch.Tensor, activation: str) -> torch.Tensor:
        """Return the activation of x."""

    @abstractmethod
    def gated_linear(self, x: torch.Tensor, weight: WeightT, activation: str) -> torch.Tensor:
        """Return `act(gate(x)) * up(x)`: [T, hidden] -> [T, width]."""

    def mlp(self, x: torch.Tensor, up: WeightT, down: WeightT, spec: MlpSpec) -> torch.Tensor:
        """Return the output of a feed-forward network: [T, hidden] -> [T, hidden]. `up` includes the gate."""
        if spec.gated:
            return self.linear(self.gated_linear(x, up, spec.activation), down)
        return self.linear(self.activate(self.linear(x, up), spec.activation), down)

    @abstractmethod
    def attend(self, plan: PlanT, layer: int, qkv: torch.Tensor, weights: AttentionWeights) -> torch.Tensor:
        """Normalise and rotate queries and keys, write keys and values to the cache, and return the attention
        of each query over the cached tokens of its sequence: [T, H * V].

        qkv is [T, H * D + K * D + K * V], with heads in the order q, k, v.
        """

    @abstractmethod
    def experts(self, x: torch.Tensor, weights: MoeWeights[WeightT]) -> torch.Tensor:
        """Return the weighted sum of the outputs of each token's experts: [T, hidden] -> [T, hidden].

        The result of a token does not depend on the order of the other tokens.
        """

    @abstractmethod
    def logits(self, hidden: torch.Tensor, weight: WeightT) -> torch.Tensor:
        """Return the logits [N, vocab] of hidden states [N, hidden]; N counts only the rows that are
        needed."""
