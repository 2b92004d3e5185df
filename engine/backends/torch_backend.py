"""TorchBackend: the operations that backends in torch share: linears, norms and mixtures of experts.

On a CPU, weights are packed once by oneDNN, which is 2-3 times faster than F.linear in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pagefleet.engine.backends.activations import activation, gated_activation
from pagefleet.engine.backends.base import (
    AttentionWeights,
    Backend,
    MoeWeights,
    Normed,
    NormWeights,
)
from pagefleet.engine.backends.routing import route
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.model_spec import AttentionSpec

__all__ = ["PackedLinear", "TokenPlan", "TorchBackend"]


class TokenPlan(Protocol):
    """What every plan of a step has: the ids and positions of its tokens, each int64 [T]."""

    @property
    def token_ids(self) -> torch.Tensor: ...
    @property
    def positions(self) -> torch.Tensor: ...


TokensT = TypeVar("TokensT", bound=TokenPlan)

PACKED_ROWS = 16
"""The number of rows that oneDNN chooses the weight layout for; the layout works with any number."""


@dataclass(frozen=True)
class PackedLinear:
    """A weight matrix [out, in], either plain or in oneDNN's blocked layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    is_prepacked: bool


class TorchBackend(Backend[TokensT, PackedLinear]):
    """A backend without a KV cache and attention; `Backend` describes its operations."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self._prepacks = device.type == "cpu" and _onednn_supports(dtype)

    def pack_linear(self, matrices: Sequence[LinearWeights]) -> PackedLinear:
        parts = [self._cast(matrix.dense()) for matrix in matrices]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        biases = (
            [_bias(matrix) for matrix in matrices] if any(each.bias is not None for each in matrices) else []
        )
        return self._pack(weight.contiguous(), self._cast(torch.cat(biases)) if biases else None)

    def pack_tied_head(self, table: torch.Tensor, *, is_mapped: bool) -> PackedLinear:
        # oneDNN's layout is a copy. If the table itself uses memory, the head shares it instead.
        return self._pack(table, None) if is_mapped else PackedLinear(table, None, is_prepacked=False)

    def tokens(self, plan: TokensT) -> tuple[torch.Tensor, torch.Tensor]:
        return plan.token_ids, plan.positions

    def embedding(self, plan: TokensT, table: torch.Tensor) -> torch.Tensor:
        return F.embedding(plan.token_ids, table)

    def position_embedding(self, plan: TokensT, table: torch.Tensor, offset: int) -> torch.Tensor:
        return F.embedding(plan.positions + offset, table)

    def norm(self, hidden: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        spec, weight = norm.spec, norm.weight
        if hidden.dtype != weight.dtype:
            return self.norm(hidden.to(weight.dtype), norm).to(hidden.dtype)
        if weight.ndim > 1:
            # Each head has its own weights.
            normalise = F.layer_norm if spec.centred else F.rms_norm
            return normalise(hidden, hidden.shape[-1:], eps=spec.eps) * weight
        if spec.centred:
            return F.layer_norm(hidden, weight.shape, weight, norm.bias, spec.eps)
        return F.rms_norm(hidden, weight.shape, weight, spec.eps)

    def add_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, norm: NormWeights | None, scale: float = 1.0
    ) -> Normed:
        residual = torch.add(residual, hidden, alpha=scale)
        return Normed(residual if norm is None else self.norm(residual, norm), residual)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        if weight.is_prepacked:
            linear = torch.ops.mkldnn._linear_pointwise
            output: torch.Tensor = linear(x, weight.weight, weight.bias, "none", [], "")
            return output
        return F.linear(x, weight.weight, weight.bias)

    def activate(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return activation(x, name)

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, name: str) -> torch.Tensor:
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        return gated_activation(gate, up, name)

    def experts(self, x: torch.Tensor, weights: MoeWeights[PackedLinear]) -> torch.Tensor:
        spec = weights.spec
        routes = route(self.linear(x, weights.router), spec, weights.correction)
        # Grouped by expert, in the order of the experts: a token adds its experts in the same order in any
        # batch.
        order = routes.experts.flatten().argsort(stable=True)
        rows, factors = order // spec.top_k, routes.weights.flatten()[order].to(x.dtype)
        counts = routes.experts.flatten().bincount(minlength=spec.num_experts).tolist()
        output, start = torch.zeros_like(x), 0
        for expert, count in enumerate(counts):
            if count:
                chosen = slice(start, start + count)
                hidden = self.mlp(x[rows[chosen]], weights.gate_up[expert], weights.down[expert], spec.expert)
                output.index_add_(0, rows[chosen], hidden * factors[chosen, None])
                start += count
        return output

    def logits(self, hidden: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        return self.linear(hidden, weight)

    # -- for the backends ------------------------------------------------------------------------------

    def _split_heads(
        self, qkv: torch.Tensor, spec: AttentionSpec, weights: AttentionWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised query and key heads [T, H + K, D], and value heads [T, K, D]."""
        num_heads, dim, value_dim = spec.num_heads, spec.head_dim, spec.value_dim or spec.head_dim
        num_rotated = (num_heads + spec.num_kv_heads) * dim
        heads, value = qkv[:, :num_rotated].reshape(len(qkv), -1, dim), qkv[:, num_rotated:]
        if spec.qk_norm is not None:
            assert weights.query_norm is not None, spec
            assert weights.key_norm is not None, spec
            pairs = [(heads[:, :num_heads], weights.query_norm), (heads[:, num_heads:], weights.key_norm)]
            if spec.qk_norm.across_heads:
                normed = [self.norm(part.flatten(1), norm).view(part.shape) for part, norm in pairs]
            else:
                normed = [self.norm(part, norm) for part, norm in pairs]
            heads = torch.cat(normed, dim=1)
        value = value.reshape(len(qkv), -1, value_dim)
        return heads, value if value_dim == dim else F.pad(value, (0, dim - value_dim))

    def _pack(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear:
        if self._prepacks:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        return PackedLinear(weight, bias, self._prepacks)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return zeros, not uninitialised memory: a masked slot has the weight 0, and 0 * NaN is NaN."""
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        # torch.zeros writes every byte; numpy gets zero pages, which use no memory until they are written.
        bytes_ = np.zeros((*shape, self.dtype.itemsize), dtype=np.uint8)
        return torch.from_numpy(bytes_).view(self.dtype)[..., 0]


def _bias(matrix: LinearWeights) -> torch.Tensor:
    """Return the bias [out]: zeros if there is none."""
    return torch.zeros(matrix.shape[0]) if matrix.bias is None else matrix.bias.float()


def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
