"""Sums of rows of weights, in an order that nothing else in the batch changes, and their inversion.

Two orders: token by token, for a few candidates; and for a whole vocabulary in blocks of 256, each by itself
and then block by block, at a tenth of the time. Sums are float64.
"""

from __future__ import annotations

import torch

__all__ = ["block_sum", "invert", "invert_blocks", "running_sum"]

BLOCK = 256


def running_sum(weights: torch.Tensor) -> torch.Tensor:
    """[N, M], token by token: a 0 anywhere between them changes no bit."""
    return weights.cumsum(dim=-1, dtype=torch.float64)


def block_sum(weights: torch.Tensor) -> torch.Tensor:
    """[N]: the sum of each row of [N, vocab], in blocks."""
    return running_sum(_block_sums(weights))[:, -1]


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first running sum above uniform * total, for each row of weights [N, M]."""
    sums = running_sum(weights)
    return _search(sums, uniform * sums[:, -1])


def invert_blocks(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """As `invert`, for whole vocabularies, in blocks: which block, then which token in it."""
    sums = running_sum(_block_sums(weights))
    target = uniform * sums[:, -1]
    block = _search(sums, target)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
    is_there = columns < weights.shape[-1]
    inside = weights.gather(1, columns.clamp(max=weights.shape[-1] - 1)) * is_there
    return block * BLOCK + _search(running_sum(inside), target - before)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """[N, ceil(vocab / BLOCK)]"""
    end = weights.shape[-1] // BLOCK * BLOCK
    full = weights[:, :end].reshape(len(weights), end // BLOCK, BLOCK)
    sums = full.sum(dim=-1, dtype=torch.float64)
    if end == weights.shape[-1]:
        return sums
    return torch.cat([sums, running_sum(weights[:, end:])[:, -1:]], dim=-1)


def _search(sums: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index of the first of each row's sums above its target; a target that rounding put at the end or
    beyond it means the last one that adds anything."""
    last = sums[:, -1]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
    return index.clamp_(max=sums.shape[-1] - 1)
