"""Sums of rows of weights, and their inverse CDF. The order of the sums does not depend on the batch.

There are two orders: token by token, for a few candidates; and, for a whole vocabulary, within blocks of 256
and then over the blocks, which takes a tenth of the time. Sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = [
    "BLOCK",
    "Scratch",
    "block_sum",
    "block_sums",
    "inverse_cdf",
    "inverse_cdf_in_blocks",
    "running_sum",
]

BLOCK = 256


class Scratch:
    """Memory that passes over whole rows use again on a CPU, where fresh memory costs as much as the pass."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def get(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return memory of the shape of `like`, which the next call with this name uses again."""
        held = self._held.get(name)
        if held is None or held.dtype != dtype or held.numel() < like.numel():
            held = self._held[name] = torch.empty(like.numel(), dtype=dtype)
        return held[: like.numel()].view(like.shape)


def running_sum(weights: torch.Tensor) -> torch.Tensor:
    """Return float64 [N, M], added token by token: additional weights of 0 do not change a bit."""
    return weights.cumsum(dim=-1, dtype=torch.float64)


def block_sum(weights: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
    """Return float64 [N]: the sum of each row of [N, vocab], added in blocks."""
    return running_sum(block_sums(weights, scratch))[:, -1]


def inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return int64 [N]: for each row of weights [N, M], the index of the first running sum above
    uniform * total."""
    sums = running_sum(weights)
    return _search(sums, uniform * sums[:, -1])


def inverse_cdf_in_blocks(
    sums: torch.Tensor,
    uniform: torch.Tensor,
    vocab_size: int,
    weights_of: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Like `inverse_cdf`, for a whole vocabulary: finds the block, then the token in it.

    Args:
        sums: `block_sums` of the weights.
        weights_of: returns each row's weights in its columns [N, BLOCK].
    """
    sums = running_sum(sums)
    target = uniform * sums[:, -1]
    block = _search(sums, target)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=sums.device)
    inside = weights_of(columns.clamp(max=vocab_size - 1)) * (columns < vocab_size)
    return block * BLOCK + _search(running_sum(inside), target - before)


def block_sums(weights: torch.Tensor, scratch: Scratch | None = None) -> torch.Tensor:
    """Return float64 [N, ceil(vocab / BLOCK)]."""
    end = weights.shape[-1] // BLOCK * BLOCK
    full = weights[:, :end]
    if scratch is not None:
        # sum() would convert them too, but into fresh memory.
        full = scratch.get("wide", full, torch.float64).copy_(full)
    sums = full.view(len(weights), end // BLOCK, BLOCK).sum(dim=-1, dtype=torch.float64)
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
