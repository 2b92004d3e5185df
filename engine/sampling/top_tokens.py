"""Rankings of rows of numbers by (number descending, id ascending), without sorting whole rows.

`row_max` finds the first token of the ranking, `RankedRows` the first few, and `keep_top_mass` a prefix of
any length. This module does not know what the numbers mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["RankedRows", "TopTokens", "keep_top_mass", "row_max"]

Ids = NDArray[np.int64]

GROUP = 16
"""Tokens per group in `RankedRows`: the groups' maxima bound the search for the top tokens."""
BLOCK = 512
"""Neighbouring tokens per block in `row_max`."""
NUM_BINS = 2048
BINS_PER_NAT = 64
"""Of `keep_top_mass`: a bin spans a factor of 1.016 in weight; the last one has all weights beyond e^-32."""


class TopTokens:
    """The highest tokens of some rows, in the order of the ranking: `values` and `ids`, both [N, count].

    `sorted_ids` [N, count] has the same ids in ascending order.
    """

    def __init__(self, values: torch.Tensor, ids: torch.Tensor) -> None:
        self.values = values
        self.ids = ids
        self.sorted_ids, self._order = ids.sort(dim=-1)

    def by_id(self, ranked: torch.Tensor) -> torch.Tensor:
        """Reorder a [N, count] from the order of `ids` to that of `sorted_ids`."""
        return ranked.gather(1, self._order)


class RankedRows:
    """Rows [N, vocab] whose highest tokens are found on request.

    Args:
        rows: are read in place, not copied.
        indices, replacements: `replacements[i]` is used instead of `rows[indices[i]]`.
    """

    def __init__(
        self, rows: torch.Tensor, indices: Ids | None = None, replacements: torch.Tensor | None = None
    ) -> None:
        self.vocab_size, self.device = rows.shape[-1], rows.device
        self.dtype = torch.promote_types(rows.dtype, torch.float32)
        self._rows = list(rows.unbind())
        self._maxima = _maxima(rows).to(self.dtype)
        if indices is not None and replacements is not None:
            for index, row in zip(indices.tolist(), replacements.unbind(), strict=True):
                self._rows[index] = row
            self._maxima[torch.from_numpy(indices).to(self.device)] = _maxima(replacements)

    def max(self) -> NDArray[np.float64]:
        """Return float64 [N]: the maximum of each row, NaN if the row contains one."""
        result: NDArray[np.float64] = self._maxima.amax(dim=1).double().cpu().numpy()
        return result

    def take(self, indices: Ids) -> torch.Tensor:
        """Return a copy of some rows, in float32 or wider."""
        taken = torch.empty(len(indices), self.vocab_size, dtype=self.dtype, device=self.device)
        for row, index in zip(taken.unbind(), indices.tolist(), strict=True):
            row.copy_(self._rows[index])
        return taken

    def top(self, indices: Ids, count: int) -> TopTokens:
        """Return the `count` highest tokens of these rows, ties by ascending id.

        Of several tokens that tie with the last one, any may be left out.
        """
        return (self._top_on_host if self.device.type == "cpu" else self._top_on_device)(indices, count)

    def _top_on_device(self, indices: Ids, count: int) -> TopTokens:
        values, ids = self.take(indices).topk(count, sorted=False)
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
        return TopTokens(values, ids.gather(1, order))

    def _top_on_host(self, indices: Ids, count: int) -> TopTokens:
        """Row by row with numpy, in half of the time that torch takes."""
        maxima = self._maxima.numpy()
        values = np.empty((len(indices), count), dtype=maxima.dtype)
        ids = np.empty((len(indices), count), dtype=np.int64)
        # One buffer for all rows, so that it stays in the processor's cache.
        buffer = torch.empty(self.vocab_size, dtype=self.dtype)
        is_candidate = np.empty(self.vocab_size, dtype=np.bool_)
        for i, index in enumerate(indices.tolist()):
            held = self._rows[index]
            row = (held if held.dtype == self.dtype else buffer.copy_(held)).numpy()
            bound = _nth_highest(maxima[index] if maxima.shape[1] >= count else row, count)
            # At least `count` tokens reach the count-th highest maximum, and seldom many more.
            candidates = np.flatnonzero(np.greater_equal(row, bound, out=is_candidate))
            if len(candidates) > 2 * count:
                candidates = _drop_ties(candidates, row, bound, count)
            negated = -row[candidates]
            order = negated.argsort(kind="stable")[:count]
            values[i] = -negated[order]
            ids[i] = candidates[order]
        return TopTokens(torch.from_numpy(values), torch.from_numpy(ids))


def _nth_highest(values: NDArray[Any], n: int) -> Any:
    return np.partition(values, len(values) - n)[len(values) - n]


def _drop_ties(ids: Ids, row: NDArray[Any], bound: float, count: int) -> Ids:
    """Return the ids above the bound and the first `count` of those that equal it.

    Thousands of tokens may equal it, above all if it is -inf.
    """
    is_above = row[ids] > bound
    return np.sort(np.concatenate([ids[is_above], ids[~is_above][:count]]))


def _maxima(rows: torch.Tensor) -> torch.Tensor:
    """Return the maxima of disjoint groups of GROUP tokens, followed by the remaining tokens themselves.

    Group g of n contains the tokens g, g + n, ...: the maxima of neighbouring groups are vector operations.
    """
    num_groups = rows.shape[-1] // GROUP
    end = num_groups * GROUP
    maxima = rows[:, :end].reshape(len(rows), GROUP, num_groups).amax(dim=1)
    return maxima if end == rows.shape[-1] else torch.cat([maxima, rows[:, end:]], dim=1)


def row_max(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maximum of each row of [N, vocab] and the smallest id that has it. A NaN is the maximum.

    Two steps take a third of the time of one, because a maximum without its index is a vector operation.
    """
    vocab_size = rows.shape[-1]
    end = vocab_size // BLOCK * BLOCK
    blocks = rows[:, :end].reshape(len(rows), end // BLOCK, BLOCK).amax(dim=-1)
    if end < vocab_size:
        blocks = torch.cat([blocks, rows[:, end:].amax(dim=-1, keepdim=True)], dim=1)
    block = blocks.max(dim=-1).indices
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=rows.device)
    # Ids beyond the end become the last token again, behind the token itself: the first maximum is the same.
    highest = rows.gather(1, ids.clamp_(max=vocab_size - 1)).max(dim=-1)
    return highest.values, ids.gather(1, highest.indices[:, None])[:, 0]


def keep_top_mass(values: torch.Tensor, weights: torch.Tensor, mass: float, nat: float = 1.0) -> torch.Tensor:
    """Return the weights of the shortest prefix of the ranking that reaches `mass`, and 0 for all others.

    With probabilities as weights that is top-p over the whole vocabulary, with ones it is top-k. Tokens are
    counted into bins by their value. The sums of the bins show in which bin the prefix ends; only the tokens
    of that bin are sorted.

    Args:
        values: [vocab], the numbers to rank by.
        weights: [vocab], float64; are added up bin by bin.
        nat: the difference in value that changes a weight by a factor of e.
    """
    bins = _bins(values, BINS_PER_NAT / nat)
    sums = torch.bincount(bins, weights, minlength=NUM_BINS).cumsum(dim=0)
    # The first bin whose sum reaches the mass; the last one if rounding keeps all sums below it.
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
    """Return int [vocab]. A higher value never gets a higher bin, because rounding keeps the order."""
    return (values.amax() - values).mul_(per_unit).clamp_(max=NUM_BINS - 1).int()
