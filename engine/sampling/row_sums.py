"""Sums of rows of weights, and their inverse CDF. The order of the sums does not depend on the batch.

There are two orders: token by token, for a few candidates; and, for a whole vocabulary, within blocks of 256
and then over the blocks, which takes a tenth of the time. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pagefleet.engine.sampling.arrays import Array, arange
from pagefleet.engine.sampling.scratch import Scratch

__all__ = [
    "block_sum",
    "block_sums",
    "inverse_cdf",
    "inverse_cdf_in_blocks",
    "running_sum",
]

BLOCK = 256
NUM_WIDE_BLOCKS = 192
"""Blocks that a CPU converts to float64 at a time, so that they stay in its cache."""


def running_sum(weights: Array) -> Array:
    """Return float64 [N, M], added token by token: additional weights of 0 do not change a bit."""
    if isinstance(weights, np.ndarray):
        return weights.cumsum(axis=1, dtype=np.float64)
    return weights.cumsum(dim=1, dtype=torch.float64)


def block_sum(weights: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
    """Return float64 [N]: the sum of each row of [N, vocab], added in blocks."""
    sums: torch.Tensor = running_sum(block_sums(weights, scratch))[:, -1]
    return sums


def inverse_cdf(weights: Array, uniform: Array) -> Array:
    """Return int64 [N]: for each row of weights [N, M], the index of the first running sum above
    uniform * total."""
    sums = running_sum(weights)
    return _search(sums, uniform * sums[:, -1])


def inverse_cdf_in_blocks(
    sums: Array, uniform: Array, vocab_size: int, weights_of: Callable[[Array], Array]
) -> Array:
    """Like `inverse_cdf`, for a whole vocabulary: finds the block, then the token in it.

    Args:
        sums: `block_sums` of the weights.
        weights_of: returns each row's weights in its columns [N, BLOCK].
    """
    sums = running_sum(sums)
    target = uniform * sums[:, -1]
    block = _search(sums, target)
    before = (sums * (arange(sums.shape[1], sums) == block[:, None] - 1)).sum(1)
    columns = block[:, None] * BLOCK + arange(BLOCK, sums)
    inside = weights_of(columns.clip(max=vocab_size - 1)) * (columns < vocab_size)
    return block * BLOCK + _search(running_sum(inside), target - before)


def block_sums(weights: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
    """Return float64 [N, ceil(vocab / BLOCK)]."""
    num_blocks = weights.shape[-1] // BLOCK
    end = num_blocks * BLOCK
    full = weights[:, :end].view(len(weights), num_blocks, BLOCK)
    if scratch is None:
        sums = full.sum(dim=-1, dtype=torch.float64)
    else:
        # sum() would convert the rows too, but all of them into fresh memory.
        wide = scratch.get("wide", (NUM_WIDE_BLOCKS, BLOCK), torch.float64)
        starts = range(0, num_blocks, NUM_WIDE_BLOCKS)
        parts = [row[start : start + NUM_WIDE_BLOCKS] for row in full.unbind() for start in starts]
        sums = torch.cat([wide[:0, 0], *(wide[: len(part)].copy_(part).sum(dim=-1) for part in parts)])
        sums = sums.view(len(weights), num_blocks)
    if end == weights.shape[-1]:
        return sums
    return torch.cat([sums, running_sum(weights[:, end:])[:, -1:]], dim=-1)


def _search(sums: Array, target: Array) -> Array:
    """Return, for each row of sums, the index of the first sum above the row's target.

    A target that rounding moved to the total or beyond it yields the last token that has a weight.
    """
    return ((sums <= target[:, None]) & (sums < sums[:, -1:])).sum(1)
