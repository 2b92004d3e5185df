"""The attention of the reference backend: rotation, pages of the KV cache, and the products.

Sequences with one new token, or a few (drafts), are attended to in groups, with one batched product over
their gathered pages; longer chunks one by one with torch's scaled_dot_product_attention, or with written-out
products if the model caps its scores or has sinks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from pagefleet.engine.backends.reference_plan import Angles, DecodeGroup, PrefillChunk
from pagefleet.engine.model_spec import AttentionSpec, QueryGrowthSpec, RopeSpec

__all__ = ["Pages", "attend_chunk", "attend_group", "attend_whole", "growth", "rotate"]


class Pages:
    """The KV cache: one tensor [2K, num_blocks, block_size, D] for each layer."""

    def __init__(self, layers: list[torch.Tensor], block_size: int) -> None:
        self._layers, self._block_size = layers, block_size
        self._gathered = layers[0].new_empty(0) if layers else torch.empty(0)

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new keys and values [T, K, D] to `slots` [T * 2K]."""
        head_dim = key.shape[-1]
        new = torch.cat([key, value], dim=1).view(-1, head_dim)
        self._layers[layer].view(-1, head_dim).index_copy_(0, slots, new)

    def gather(self, layer: int, pages: torch.Tensor) -> torch.Tensor:
        """Return [len(pages), block_size * D], valid until the next call: the memory is reused to avoid page
        faults."""
        cache = self._layers[layer]
        row = self._block_size * cache.shape[-1]
        if self._gathered.numel() < len(pages) * row:
            self._gathered = cache.new_empty(len(pages) * row * 5 // 4)
        out = self._gathered[: len(pages) * row].view(len(pages), row)
        return torch.index_select(cache.view(-1, row), 0, pages, out=out)


def rotate(heads: torch.Tensor, angles: Angles, rope: RopeSpec) -> torch.Tensor:
    """Return heads [T, N, D] with the elements rotated that `rope` names."""
    cos, sin = angles
    size = 2 * cos.shape[-1]
    part = heads[..., rope.start : rope.start + size]
    first, second = (part[..., ::2], part[..., 1::2]) if rope.interleaved else part.chunk(2, dim=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    rotated = torch.stack(turned, dim=-1).flatten(-2) if rope.interleaved else torch.cat(turned, dim=-1)
    if size == heads.shape[-1]:
        return rotated
    return torch.cat([heads[..., : rope.start], rotated, heads[..., rope.start + size :]], dim=-1)


def growth(positions: torch.Tensor, spec: QueryGrowthSpec, dtype: torch.dtype) -> torch.Tensor:
    """Return the factors of the queries at these positions [T]: [T, 1, 1]."""
    steps = torch.div(positions, spec.length, rounding_mode="floor")
    factors = 1 + spec.beta * torch.log1p(steps.to(torch.promote_types(dtype, torch.float32)))
    return factors.to(dtype)[:, None, None]


def attend_group(
    group: DecodeGroup,
    query: torch.Tensor,
    gathered: torch.Tensor,
    spec: AttentionSpec,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [B * Q, H, D] over gathered pages -> [B * Q, H, D].

    The queries of a sequence, for all query heads that share a key head, are the rows of one product.
    """
    num_queries, num_kv_heads, head_dim = group.num_queries, spec.num_kv_heads, spec.head_dim
    num_seqs = len(query) // num_queries
    keys, values = gathered.view(2, num_kv_heads * num_seqs, -1, head_dim)
    grouped = query.view(num_seqs, num_queries, num_kv_heads, -1, head_dim).permute(2, 0, 1, 3, 4)
    shape = grouped.shape
    grouped = grouped.reshape(num_kv_heads * num_seqs, -1, head_dim)
    if spec.soft_cap is None:
        scores = torch.baddbmm(group.mask, grouped, keys.transpose(1, 2), alpha=spec.scale)
    else:
        scores = _capped(torch.bmm(grouped, keys.transpose(1, 2)) * spec.scale, spec.soft_cap) + group.mask
    if sinks is not None:
        # [H] -> one sink for each row of the product.
        rows = sinks.view(num_kv_heads, 1, 1, -1).expand(shape[:4]).reshape(len(grouped), -1)
        weights = _softmax(scores, rows)
    else:
        weights = _softmax(scores)
    attended = torch.bmm(weights, values)
    return attended.view(shape).permute(1, 2, 0, 3, 4).reshape(query.shape)


def attend_chunk(
    chunk: PrefillChunk,
    query: torch.Tensor,
    gathered: torch.Tensor,
    spec: AttentionSpec,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [L, H, D] over gathered pages -> [L, H, D]"""
    pages = gathered.view(2, 1, spec.num_kv_heads, -1, spec.head_dim)
    keys, values = pages[:, :, :, : chunk.num_keys]
    if spec.soft_cap is not None or sinks is not None:
        return _attend_written_out(chunk, query, keys[0], values[0], spec, sinks)
    if chunk.num_context and chunk.mask is None:
        return _attend_in_parts(query, keys, values, chunk.num_context, spec.scale)
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=spec.scale,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)


def attend_whole(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: AttentionSpec, lens: list[int]
) -> torch.Tensor:
    """Return the attention of each token over all tokens of its sequence in the step, in both directions.

    query [T, H, D], key and value [T, K, D] -> [T, H, D]
    """
    parts = zip(
        *(torch.split(each.transpose(0, 1), lens, dim=1) for each in (query, key, value)), strict=True
    )
    attended = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], scale=spec.scale, enable_gqa=True)[0]
        for q, k, v in parts
    ]
    return torch.cat(attended, dim=1).transpose(0, 1)


def _attend_in_parts(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, num_context: int, scale: float
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
        scale=scale,
    )
    own, own_sum = _flash_attention(
        query.transpose(0, 1)[None],
        keys[:, :, num_context:].repeat_interleave(size, 1),
        values[:, :, num_context:].repeat_interleave(size, 1),
        is_causal=True,
        scale=scale,
    )
    share = torch.sigmoid(context_sum.reshape(num_heads, length) - own_sum[0])[:, :, None]
    context = context.view(num_heads, length, head_dim)
    joined = torch.lerp(own[0].to(share.dtype), context.to(share.dtype), share)
    return joined.to(query.dtype).transpose(0, 1)


def _attend_written_out(
    chunk: PrefillChunk,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spec: AttentionSpec,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query [L, H, D] over keys and values [K, keys, D] -> [L, H, D]"""
    size = spec.num_heads // spec.num_kv_heads
    keys, values = keys.repeat_interleave(size, 0), values.repeat_interleave(size, 0)
    scores = torch.matmul(query.transpose(0, 1), keys.transpose(1, 2)) * spec.scale
    if spec.soft_cap is not None:
        scores = _capped(scores, spec.soft_cap)
    seen = chunk.mask
    if seen is None:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).tril_(chunk.num_context)
    scores = scores.masked_fill(~seen, -torch.inf)
    rows = None if sinks is None else sinks[:, None].expand(scores.shape[:2])
    return torch.matmul(_softmax(scores, rows), values).transpose(0, 1)


def _flash_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention, and the logarithm of each query's sum of exponentials [1, H, L]. CPU only."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended, log_sums = attend(query, keys, values, 0.0, is_causal, scale=scale)
    return attended, log_sums


def _capped(scores: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(scores / cap) * cap


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None = None) -> torch.Tensor:
    """Return the softmax over the last axis, computed in float32 or wider, in the dtype of the scores.

    Args:
        sinks: a further score for each row, whose weight is left out of the result.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
    joined = torch.cat([scores, sinks[..., None].to(scores.dtype)], dim=-1)
    return torch.softmax(joined, dim=-1, dtype=wide)[..., :-1].to(scores.dtype)
