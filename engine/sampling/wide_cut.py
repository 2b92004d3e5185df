"""Where a ranking of a whole vocabulary is cut, without ranking it.

The tokens are counted into bins by their value; the bin in which the cut lies is known from the bins' sums,
and it alone is ranked. Everything in the bins above stays.
"""

from __future__ import annotations

import torch

__all__ = ["keep_prefix"]

NUM_BINS = 2048
BINS_PER_NAT = 64
"""A bin spans a factor of 1.016 in weight; what lies beyond a factor of e^32 is in the last one."""


def keep_prefix(values: torch.Tensor, weights: torch.Tensor, mass: float, nat: float = 1.0) -> torch.Tensor:
    """The weights of the shortest prefix of the ranking by (value descending, id ascending) that reaches
    `mass`, 0 for all others.

    Args:
        values: [vocab]; `nat` is what changes a weight by a factor of e.
        weights: [vocab], float64. They are summed bin by bin.
    """
    bins = _bins(values, BINS_PER_NAT / nat)
    sums = torch.bincount(bins, weights, minlength=NUM_BINS).cumsum(dim=0)
    # The first bin that reaches the mass; the last one where rounding lets none.
    cut = min(int(torch.searchsorted(sums, mass)), NUM_BINS - 1)
    inside = torch.nonzero(bins == cut)[:, 0]
    inside = inside[values[inside].sort(descending=True, stable=True).indices]
    reached = weights[inside].cumsum(dim=0)
    if cut:
        reached += sums[cut - 1]
    kept = weights.masked_fill(bins > cut, 0.0)
    kept[inside[int((reached < mass).sum()) + 1 :]] = 0.0
    return kept


def _bins(values: torch.Tensor, per_unit: float) -> torch.Tensor:
    """Of two tokens, the one with the higher value is never in the higher bin: rounding keeps the order."""
    return (values.amax() - values).mul_(per_unit).clamp_(max=NUM_BINS - 1).int()
