"""CpuBackend: torch's packed linears; attention, norms and gates in C++ (kernels/).

kernels/tiles.hpp describes the layout of the KV cache. A token's attention is the same, bit for bit, in any
batch, for any way of cutting a prompt into steps, after a prefix hit and for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass
from typing import Final

import torch

from pagefleet.engine.backends.base import AttentionWeights, Normed, NormWeights, RaggedBatch
from pagefleet.engine.backends.cpu.native import ELEMENTS, LayerArguments, Library, NormArguments
from pagefleet.engine.backends.cpu.plan import CpuPlan, CpuPlanner, layer_arguments
from pagefleet.engine.backends.reference_attention import attend_whole, rotate
from pagefleet.engine.backends.reference_plan import Angles
from pagefleet.engine.backends.torch_backend import PackedLinear, TorchBackend
from pagefleet.engine.model_spec import AttentionSpec, ModelSpec, NormSpec

__all__ = ["CpuBackend"]

_LANES: Final = 16
_ACTIVATIONS: Final = {
    "silu": 0,
    "swish": 0,
    "gelu_pytorch_tanh": 1,
    "gelu_new": 1,
    "gelu_fast": 1,
}
"""The activations of the kernel for gates; torch computes the others."""


@dataclass
class _Layer:
    """The cache of a layer, and the arguments of its kernel with the weights they point into."""

    keys: torch.Tensor
    values: torch.Tensor
    arguments: LayerArguments
    weights: AttentionWeights | None = None


class CpuBackend(TorchBackend[CpuPlan]):
    """The backend for CPUs; `Backend` describes its operations.

    Args:
        dtype: one of `ELEMENTS`.
        target: the instruction set. None: the fastest that the processor has.
    """

    def __init__(self, dtype: torch.dtype, library: Library, target: str | None = None) -> None:
        super().__init__(torch.device("cpu"), dtype)
        self.target = target or library.targets[0]
        self._library = library
        self._kernels = library.kernels(str(dtype).removeprefix("torch."), self.target)
        self._wide = torch.promote_types(dtype, torch.float32)
        self._norms: dict[int, tuple[NormWeights, NormArguments]] = {}

    @property
    def name(self) -> str:
        return f"cpu {self.target}"

    @staticmethod
    def supports(dtype: torch.dtype) -> bool:
        return str(dtype).removeprefix("torch.") in ELEMENTS

    def pack_norm(self, spec: NormSpec, weight: torch.Tensor, bias: torch.Tensor | None) -> NormWeights:
        # In float32 or wider, in which the kernels compute.
        packed = super().pack_norm(spec, weight, bias)
        wide = None if packed.bias is None else packed.bias.to(self._wide)
        return NormWeights(spec, packed.weight.to(self._wide), wide)

    def allocate_kv_cache(self, spec: ModelSpec, num_blocks: Sequence[int], block_size: int) -> None:
        self._attention = [layer.attention for layer in spec.layers]
        self._planner = CpuPlanner(spec, block_size, self.dtype, self._library, self._kernels)
        self._layers = [
            self._new_layer(each, num_blocks[spec.kv_group(index)], block_size)
            for index, each in enumerate(self._attention)
        ]

    def kv_bytes_per_block(self, spec: ModelSpec, block_size: int) -> list[int]:
        sizes = [0] * len(spec.kv_windows)
        for index, layer in enumerate(spec.layers):
            keys, values = self._block_elements(layer.attention, block_size)
            sizes[spec.kv_group(index)] += (keys + values) * self.dtype.itemsize
        return sizes

    def begin_step(self, batch: RaggedBatch) -> CpuPlan:
        return self._planner.plan(batch)

    def attend(self, plan: CpuPlan, layer: int, qkv: torch.Tensor, weights: AttentionWeights) -> torch.Tensor:
        spec = self._attention[layer]
        if not spec.causal:
            return self._attend_whole(plan, spec, qkv, weights)
        if qkv.stride(1) != 1:
            qkv = qkv.contiguous()
        output = qkv.new_empty(len(qkv), spec.num_heads * (spec.value_dim or spec.head_dim))
        arguments = self._arguments(layer, weights)
        self._kernels.attend(
            byref(arguments), byref(plan.steps[layer]), qkv.data_ptr(), qkv.stride(0), output.data_ptr()
        )
        return output

    def norm(self, hidden: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        if norm.weight.ndim > 1 or hidden.dtype != self.dtype:
            return super().norm(hidden, norm)
        hidden = hidden.contiguous()
        normed = torch.empty_like(hidden)
        self._call_norm(None, hidden, norm, 1.0, normed, None)
        return normed

    def add_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, norm: NormWeights | None, scale: float = 1.0
    ) -> Normed:
        hidden, residual = hidden.contiguous(), residual.contiguous()
        total = torch.empty_like(residual)
        normed = total if norm is None else torch.empty_like(residual)
        self._call_norm(hidden, residual, norm, scale, normed, total)
        return Normed(normed, total)

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, name: str) -> torch.Tensor:
        if name not in _ACTIVATIONS:
            return super().gated_linear(x, weight, name)
        both = self.linear(x, weight).contiguous()
        output = both.new_empty(len(both), both.shape[1] // 2)
        self._kernels.gate(
            both.data_ptr(), output.data_ptr(), *output.shape, _ACTIVATIONS[name], torch.get_num_threads()
        )
        return output

    def _call_norm(
        self,
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
        norm: NormWeights | None,
        scale: float,
        normed: torch.Tensor,
        total: torch.Tensor | None,
    ) -> None:
        size = residual.shape[-1]
        self._kernels.add_norm(
            None if norm is None else byref(self._norm_arguments(norm)),
            None if hidden is None else hidden.data_ptr(),
            residual.data_ptr(),
            scale,
            normed.data_ptr(),
            None if total is None else total.data_ptr(),
            residual.numel() // size,
            size,
            torch.get_num_threads(),
        )

    def _norm_arguments(self, norm: NormWeights) -> NormArguments:
        found = self._norms.get(id(norm))
        if found is None or found[0] is not norm:
            found = self._norms[id(norm)] = norm, _norm_arguments(norm)
        return found[1]

    # -- attention ------------------------------------------------------------------------------------

    def _new_layer(self, spec: AttentionSpec, num_blocks: int, block_size: int) -> _Layer:
        keys, values = (self._zeros((num_blocks * size,)) for size in self._block_elements(spec, block_size))
        arguments = layer_arguments(spec, block_size)
        arguments.keys, arguments.values = keys.data_ptr(), values.data_ptr()
        return _Layer(keys, values, arguments)

    def _block_elements(self, spec: AttentionSpec, block_size: int) -> tuple[int, int]:
        """Return the elements of the keys and of the values in one block; see kernels/tiles.hpp."""
        if not spec.causal:
            return 0, 0
        pair = 2 if self.dtype == torch.bfloat16 else 1
        slots = spec.num_kv_heads * _rounded(block_size, _LANES)
        value_dim = spec.value_dim or spec.head_dim
        return slots * _rounded(spec.head_dim, pair), slots * _rounded(value_dim, _LANES)

    def _arguments(self, index: int, weights: AttentionWeights) -> LayerArguments:
        """Return the arguments of a layer with these weights, which are usually those of the last step."""
        layer, spec = self._layers[index], self._attention[index]
        if layer.weights is weights:
            return layer.arguments
        if weights.sinks is not None:
            layer.arguments.sinks = weights.sinks.data_ptr()
        if spec.qk_norm is not None:
            assert weights.query_norm is not None, spec
            assert weights.key_norm is not None, spec
            for name, norm in (("query_norm", weights.query_norm), ("key_norm", weights.key_norm)):
                arguments = _norm_arguments(norm)
                arguments.across_heads = spec.qk_norm.across_heads
                arguments.per_head = spec.qk_norm.per_head
                setattr(layer.arguments, name, arguments)
        layer.weights = weights
        return layer.arguments

    def _attend_whole(
        self, plan: CpuPlan, spec: AttentionSpec, qkv: torch.Tensor, weights: AttentionWeights
    ) -> torch.Tensor:
        """Return the attention of an encoder's layer, which has no cache."""
        heads, value = self._split_heads(qkv, spec, weights)
        if spec.rope is not None:
            angles = Angles(*(each[:, None].to(self.dtype) for each in plan.angles[spec.rope]))
            heads = rotate(heads, angles, spec.rope)
        query, key = heads[:, : spec.num_heads], heads[:, spec.num_heads :]
        output = attend_whole(query, key, value, spec, plan.lens)
        return output[..., : spec.value_dim].reshape(len(qkv), -1)


def _norm_arguments(norm: NormWeights) -> NormArguments:
    return NormArguments(
        weight=norm.weight.data_ptr(),
        bias=None if norm.bias is None else norm.bias.data_ptr(),
        eps=norm.spec.eps,
        exists=True,
        centred=norm.spec.centred,
    )


def _rounded(value: int, to: int) -> int:
    return -(-value // to) * to
