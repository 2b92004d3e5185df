"""ReferenceBackend: the backend in plain torch, for any dtype and device. Other backends are compared with
it.

KV cache layout, one tensor per layer: [2 (keys, values), K, num_blocks, block_size, D]. Seen as rows of
block_size * D, one `index_select` gathers the pages of a whole group of sequences, keys and values at
once, in the order that a batched matrix product needs: [2, K, B, length, D].

Sequences with one new token, or a few (drafts), are attended to in groups, with one batched product over
their gathered pages; longer chunks one by one with torch's scaled_dot_product_attention. On a CPU, weights
are packed once by oneDNN, which is 2-3 times faster than F.linear in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pagefleet.engine.backends.base import AttentionSpec, Backend, Normed, RaggedBatch
from pagefleet.engine.backends.reference_plan import DecodeGroup, PrefillChunk, ReferencePlan, StepPlanner

PACKED_ROWS = 16
"""The number of rows that oneDNN chooses the weight layout for; the layout works with any number."""


@dataclass(frozen=True)
class PackedLinear:
    """A weight matrix [out, in], either plain or in oneDNN's blocked layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    is_prepacked: bool


class ReferenceBackend(Backend[ReferencePlan, PackedLinear]):
    """The backend in plain torch; `Backend` describes its operations."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(device, dtype)
        self._prepacks = device.type == "cpu" and _onednn_supports(dtype)
        self._gathered = torch.empty(0, dtype=dtype, device=device)

    def pack_linear(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor] | None
    ) -> PackedLinear:
        weight = self.pack_vector(torch.cat(list(weights)))
        bias = None if biases is None else self.pack_vector(torch.cat(list(biases)))
        if self._prepacks:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
        return PackedLinear(weight, bias, self._prepacks)

    def pack_gated(
        self, gate: torch.Tensor, up: torch.Tensor, biases: Sequence[torch.Tensor] | None
    ) -> PackedLinear:
        return self.pack_linear([gate, up], biases)

    def allocate_kv_cache(self, spec: AttentionSpec, num_blocks: int, block_size: int) -> None:
        self._spec, self._block_size = spec, block_size
        self._planner = StepPlanner(spec, num_blocks, block_size, self.device, self.dtype)
        shape = (2 * spec.num_kv_heads, num_blocks, block_size, spec.head_dim)
        self._layers = [self._zeros(shape) for _ in range(spec.num_layers)]

    def begin_step(self, batch: RaggedBatch) -> ReferencePlan:
        return self._planner.plan(batch)

    def embedding(self, plan: ReferencePlan, table: torch.Tensor) -> torch.Tensor:
        return F.embedding(plan.token_ids, table)

    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(hidden, weight.shape, weight, eps)

    def add_rms_norm(
        self, hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> Normed:
        residual = residual + hidden
        return Normed(self.rms_norm(residual, weight, eps), residual)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        if weight.is_prepacked:
            linear = torch.ops.mkldnn._linear_pointwise
            output: torch.Tensor = linear(x, weight.weight, weight.bias, "none", [], "")
            return output
        return F.linear(x, weight.weight, weight.bias)

    def gated_linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        gate, up = self.linear(x, weight).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def rope_and_cache(self, plan: ReferencePlan, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        spec = self._spec
        heads = qkv.view(len(qkv), -1, spec.head_dim)
        rotated = heads[:, : spec.num_heads + spec.num_kv_heads]
        first, second = rotated.chunk(2, dim=-1)
        rotated.copy_(
            torch.cat([first * plan.cos - second * plan.sin, second * plan.cos + first * plan.sin], dim=-1)
        )
        new = heads[:, spec.num_heads :].reshape(-1, spec.head_dim)
        self._layers[layer].view(-1, spec.head_dim).index_copy_(0, plan.slots, new)
        return heads[:, : spec.num_heads]

    def paged_attention(self, plan: ReferencePlan, layer: int, query: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in plan.groups:
            output.index_copy_(0, group.rows, self._attend_group(group, layer, query[group.rows]))
        for chunk in plan.chunks:
            output[chunk.rows] = self._attend_chunk(chunk, layer, query[chunk.rows])
        return output.view(len(query), -1)

    def logits(self, hidden: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        return self.linear(hidden, weight)

    # -- attention ------------------------------------------------------------------------------------

    def _attend_group(self, group: DecodeGroup, layer: int, query: torch.Tensor) -> torch.Tensor:
        """query [B * Q, H, D] -> [B * Q, H, D].

        The queries of a sequence, for all query heads that share a key head, are the rows of one product.
        """
        num_queries, num_kv_heads, head_dim = group.num_queries, self._spec.num_kv_heads, self._spec.head_dim
        num_seqs = len(query) // num_queries
        keys, values = self._gather(layer, group.pages).view(2, num_kv_heads * num_seqs, -1, head_dim)
        grouped = query.view(num_seqs, num_queries, num_kv_heads, -1, head_dim).permute(2, 0, 1, 3, 4)
        shape = grouped.shape
        grouped = grouped.reshape(num_kv_heads * num_seqs, -1, head_dim)
        scores = torch.baddbmm(group.mask, grouped, keys.transpose(1, 2), alpha=head_dim**-0.5)
        attended = torch.bmm(_softmax(scores), values)
        return attended.view(shape).permute(1, 2, 0, 3, 4).reshape(query.shape)

    def _attend_chunk(self, chunk: PrefillChunk, layer: int, query: torch.Tensor) -> torch.Tensor:
        """query [L, H, D] -> [L, H, D]"""
        gathered = self._gather(layer, chunk.pages).view(
            2, 1, self._spec.num_kv_heads, -1, self._spec.head_dim
        )
        keys, values = gathered[:, :, :, : chunk.num_keys]
        queries = query.transpose(0, 1)[None]
        if chunk.num_context and chunk.mask is None:
            return self._attend_in_parts(query, keys, values, chunk.num_context)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=chunk.mask, is_causal=chunk.mask is None, enable_gqa=True
        )
        return attended[0].transpose(0, 1)

    def _attend_in_parts(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_context: int
    ) -> torch.Tensor:
        """query [L, H, D] over keys and values [1, K, num_context + L, D] -> [L, H, D].

        All queries attend to the whole context, so that part needs no mask, and the query heads of a key
        head are rows of one product; attention within the chunk is causal. The two results are combined by
        their sums of exponentials (FlashAttention, Dao et al. 2022). With a mask, a chunk after 7,000 tokens
        took 1.4 times as long.
        """
        length, num_heads, head_dim = query.shape
        num_kv_heads = keys.shape[1]
        size = num_heads // num_kv_heads
        grouped = query.view(length, num_kv_heads, size, head_dim).permute(1, 2, 0, 3)
        context, context_sum = _flash_attention(
            grouped.reshape(1, num_kv_heads, size * length, head_dim),
            keys[:, :, :num_context],
            values[:, :, :num_context],
            is_causal=False,
        )
        own, own_sum = _flash_attention(
            query.transpose(0, 1)[None],
            keys[:, :, num_context:].repeat_interleave(size, 1),
            values[:, :, num_context:].repeat_interleave(size, 1),
            is_causal=True,
        )
        share = torch.sigmoid(context_sum.reshape(num_heads, length) - own_sum[0])[:, :, None]
        context = context.view(num_heads, length, head_dim)
        joined = torch.lerp(own[0].to(share.dtype), context.to(share.dtype), share)
        return joined.to(query.dtype).transpose(0, 1)

    def _gather(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """Return [len(pages), block_size * D], valid until the next call: the memory is reused to avoid page
        faults."""
        row = self._block_size * self._spec.head_dim
        if self._gathered.numel() < len(pages) * row:
            self._gathered = torch.empty(len(pages) * row * 5 // 4, dtype=self.dtype, device=self.device)
        out = self._gathered[: len(pages) * row].view(len(pages), row)
        return torch.index_select(self._layers[layer].view(-1, row), 0, pages, out=out)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return zeros, not uninitialised memory: a masked slot has the weight 0, and 0 * NaN is NaN."""
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        # torch.zeros writes every byte; numpy gets zero pages, which use no memory until they are written.
        bytes_ = np.zeros((*shape, self.dtype.itemsize), dtype=np.uint8)
        return torch.from_numpy(bytes_).view(self.dtype)[..., 0]


def _flash_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention, and the logarithm of each query's sum of exponentials [1, H, L]. CPU only."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, log_sums = attend(query, keys, values, 0.0, is_causal)
    return attended, log_sums


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the last axis, computed in float32 or wider, in the dtype of the scores."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)


def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
