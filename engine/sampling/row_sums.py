"""Sums of rows of weights, and their inverse CDF. The order of the sums does not depend on the batch.

There are two orders: token by token, for a few candidates; and, for a whole vocabulary, within blocks of 256
and then over the blocks, which takes a tenth of the time. Sums are float64.
"""

from __future__ import annotations

import torch

__all__ = ["block_sum", "inverse_cdf", "inverse_cdf_in_blocks", "running_sum"]

BLOCK = 256


def running_sum(weights: torch.Tensor) -> torch.Tensor:
    """Return float64 [N, M], added token by token: additional weights of 0 do not change a bit."""
    return weights.cumsum(dim=-1, dtype=torch.float64)


def block_sum(weights: torch.Tensor) -> torch.Tensor:
    """Return float64 [N]: the sum of each row of [N, vocab], added in blocks."""
    return running_sum(_block_sums(weights))[:, -1]


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return int64 [N]: for each row of weights [N, M], the index of the first running sum above
    uniform * total."""
    sums = running_sum(weights)
    return _search(sums, uniform * sums[:, -1])


def inverse_cdf_in_blocks(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Like `inverse_cdf`, for a whole vocabulary: finds the block, then the token in it."""
    sums = running_sum(_block_sums(weights))
    target = uniform * sums[:, -1]
    block = _search(sums, target)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=weights.device)
    is_in_vocabulary = columns < weights.shape[-1]
    inside = weights.gather(1, columns.clamp(max=weights.shape[-1] - 1)) * is_in_vocabulary
    return block * BLOCK + _search(running_sum(inside), target - before)


def _block_sums(weights: torch.Tensor) -> torch.Tensor:
    """Return float64 [N, ceil(vocab / BLOCK)]."""
    end = weights.shape[-1] // BLOCK * BLOCK
    full = weights[:, :end].reshape(len(weights), end // BLOCK, BLOCK)
    sums = full.sum(dim=-1, dtype=torch.float64)
    if end == weights.shape[-1]:
        return sums
    return torch.cat([sums, running_sum(weights[:, end:])[:, -1:]], dim=-1)


def _search(sums: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return, for each row of sums, the index of the first sum above the row's target.

    A target that rounding moved to the total or beyond it yields the last token that has a weight.
    """
    last = sums[:, -1]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    index = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
    return index.clamp_(max=sums.shape[-1] - 1)
