"""The backend in plain torch: any dtype, any device. The oracle that other backends are compared with.

KV layout, one tensor a layer: [2 (keys, values), K, num_blocks, block_size, D]. Seen as rows of
block_size * D, one `index_select` gathers the pages of a whole group of sequences, keys and values at
once, already in the order that a batched matrix product wants: [2, K, B, length, D].

Sequences with one new token, or a few (drafts), are attended in groups, as a grouped product over their
gathered pages; longer pieces one by one with torch's scaled_dot_product_attention. On a CPU, weights are
packed once by oneDNN, which is 2-3 times faster than F.linear in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from pagefleet.engine.backends.base import AttentionSpec, Backend, Normed, RaggedBatch
from pagefleet.engine.backends.grouping import group_by_length

PACKED_ROWS = 16
"""The number of rows that oneDNN chooses its weight layout for; any other number works with it too."""
GROUP_COST = 96
"""What one more attention group costs, in pages gathered; measured on a CPU with SmolLM2-135M."""


NUM_GROUPED_QUERIES = 16
"""New tokens of a sequence that is still attended in a group."""


@dataclass(frozen=True)
class PackedLinear:
    """A matrix [out, in], either plain or in oneDNN's blocked layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    is_prepacked: bool


@dataclass(frozen=True)
class DecodeGroup:
    """B sequences of similar length, with Q queries each: the last one again where a sequence has fewer."""

    rows: torch.Tensor
    """[B * Q]: the queries' rows in the ragged batch."""
    num_queries: int
    pages: torch.Tensor
    """[2 * K * B * n]: rows of the flat cache, n pages a sequence."""
    mask: torch.Tensor
    """[K * B, Q * H / K, n * block_size], or 1 for the second, added to the scores: 0, or -inf behind the
    query."""


@dataclass(frozen=True)
class PrefillChunk:
    """One sequence with several queries."""

    rows: slice
    pages: torch.Tensor
    """[2 * K * n]"""
    num_context: int
    """Keys before the chunk's own."""
    num_keys: int
    mask: torch.Tensor | None
    """bool [queries, num_keys], True where a query sees a key; None: there is no context, or it is attended
    by itself."""


@dataclass(frozen=True)
class ReferencePlan:
    """What `begin_step` prepares."""

    token_ids: torch.Tensor
    cos: torch.Tensor
    """[T, 1, D / 2]"""
    sin: torch.Tensor
    slots: torch.Tensor
    """[T * 2K]: for each token, key heads then value heads, the row of the cache seen as rows of D."""
    groups: list[DecodeGroup]
    chunks: list[PrefillChunk]


class ReferenceBackend(Backend[ReferencePlan, PackedLinear]):
    """See the module's docstring; the operations are described at `Backend`."""

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
        self._spec, self._num_blocks, self._block_size = spec, num_blocks, block_size
        shape = (2 * spec.num_kv_heads, num_blocks, block_size, spec.head_dim)
        self._layers = [self._zeros(shape) for _ in range(spec.num_layers)]

    def begin_step(self, batch: RaggedBatch) -> ReferencePlan:
        positions = batch.positions
        starts = np.cumsum(batch.query_lens) - batch.query_lens
        few = (batch.query_lens > 1) & (batch.query_lens <= NUM_GROUPED_QUERIES)
        prefills = np.flatnonzero(batch.query_lens > NUM_GROUPED_QUERIES)
        groups = [
            group
            for members in (np.flatnonzero(batch.query_lens == 1), np.flatnonzero(few))
            for group in self._decode_groups(batch, starts, members)
        ]
        # float32 whatever the dtype: see models/rope.py.
        angles = torch.outer(torch.from_numpy(positions).float(), self._spec.inv_freq.cpu())[:, None]
        return ReferencePlan(
            token_ids=self._to_device(batch.token_ids),
            cos=angles.cos().to(device=self.device, dtype=self.dtype),
            sin=angles.sin().to(device=self.device, dtype=self.dtype),
            slots=self._to_device(self._slots(batch, positions)),
            groups=groups,
            chunks=[self._prefill_chunk(batch, int(starts[index]), index) for index in prefills.tolist()],
        )

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
        """query [B * Q, H, D] -> [B * Q, H, D]; a sequence's queries, and the query heads that share a key
        head, are the rows of one product."""
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

        Every query sees the whole context, so that part needs no mask, and the query heads of a key head are
        rows of one product; the chunk itself is plainly causal. The two are joined by their sums of
        exponentials (FlashAttention, Dao et al. 2022). With a mask, a chunk behind 7,000 tokens took 1.4
        times as long.
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
        """[len(pages), block_size * D], valid until the next call: fresh memory would cost page faults."""
        row = self._block_size * self._spec.head_dim
        if self._gathered.numel() < len(pages) * row:
            self._gathered = torch.empty(len(pages) * row * 5 // 4, dtype=self.dtype, device=self.device)
        out = self._gathered[: len(pages) * row].view(len(pages), row)
        return torch.index_select(self._layers[layer].view(-1, row), 0, pages, out=out)

    # -- planning -------------------------------------------------------------------------------------

    def _slots(self, batch: RaggedBatch, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        sequence = np.repeat(np.arange(len(batch.query_lens)), batch.query_lens)
        blocks = batch.block_tables[sequence, positions // self._block_size]
        heads = np.arange(2 * self._spec.num_kv_heads) * self._num_blocks * self._block_size
        slots = heads + (blocks * self._block_size + positions % self._block_size)[:, None]
        return slots.ravel()

    def _decode_groups(
        self, batch: RaggedBatch, starts: NDArray[np.int64], few: NDArray[np.int64]
    ) -> list[DecodeGroup]:
        lengths = batch.context_lens[few] + batch.query_lens[few]
        num_pages = -(-lengths // self._block_size)
        return [
            self._decode_group(batch, starts, few[members], int(num_pages[members].max()))
            for members in group_by_length(num_pages, GROUP_COST)
        ]

    def _decode_group(
        self, batch: RaggedBatch, starts: NDArray[np.int64], members: NDArray[np.int64], num_pages: int
    ) -> DecodeGroup:
        query_lens = batch.query_lens[members]
        num_queries = int(query_lens.max())
        # [B, Q]
        queries = np.minimum(np.arange(num_queries), query_lens[:, None] - 1)
        positions = batch.context_lens[members, None] + queries
        unseen = torch.from_numpy(np.arange(num_pages * self._block_size) > positions[:, :, None])
        mask = torch.zeros(unseen.shape, dtype=self.dtype).masked_fill_(unseen, -torch.inf)
        if num_queries > 1:
            mask = mask.repeat_interleave(self._spec.num_heads // self._spec.num_kv_heads, dim=1)
        return DecodeGroup(
            rows=self._to_device((starts[members, None] + queries).ravel()),
            num_queries=num_queries,
            pages=self._pages(batch.block_tables[members, :num_pages]),
            mask=mask.to(self.device).repeat(self._spec.num_kv_heads, 1, 1),
        )

    def _prefill_chunk(self, batch: RaggedBatch, start: int, index: int) -> PrefillChunk:
        num_queries, context = int(batch.query_lens[index]), int(batch.context_lens[index])
        num_keys = context + num_queries
        mask = None
        if context and self.device.type != "cpu":
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=self.device).tril_(context)
        num_pages = -(-num_keys // self._block_size)
        pages = self._pages(batch.block_tables[index, :num_pages])
        return PrefillChunk(slice(start, start + num_queries), pages, context, num_keys, mask)

    def _pages(self, blocks: NDArray[np.int64]) -> torch.Tensor:
        """Rows of the flat cache that hold `blocks` (any shape), for each of the 2K heads in turn."""
        heads = np.arange(2 * self._spec.num_kv_heads) * self._num_blocks
        return self._to_device((heads[:, None] + blocks.ravel()).ravel())

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Zeros, since masked slots are multiplied by 0, which would not silence a NaN."""
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        # torch.zeros writes every byte; numpy asks for zero pages, which cost nothing until they are used.
        bytes_ = np.zeros((*shape, self.dtype.itemsize), dtype=np.uint8)
        return torch.from_numpy(bytes_).view(self.dtype)[..., 0]

    def _to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _flash_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is attended, and the logarithm of each query's sum of exponentials [1, H, L], on a CPU."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, log_sums = attend(query, keys, values, 0.0, is_causal)
    return attended, log_sums


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last axis; the sum is taken in float32 or wider, the result has the scores' dtype."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)


def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
