"""Rankings of rows of numbers by (number descending, id ascending), without sorting whole rows.

`row_max` finds the first token of the ranking, `RankedRows` the first few, and `keep_top_mass` a prefix of
any length. This module does not know what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.arrays import Array
from pagefleet.engine.sampling.scratch import Scratch

__all__ = ["RankedRows", "TopTokens", "keep_top_mass", "row_max"]

Ids = NDArray[np.int64]

GROUP = 16
"""Tokens per group in `RankedRows`: the groups' maxima bound the search for the top tokens."""
BLOCK = 512
"""Neighbouring tokens per block in `row_max`."""
MAX_HOST_ROWS = 16
"""Rows that the host ranks at a time, so that they stay in the processor's cache."""
MIN_GROUPED_ROWS = 6
"""Fewer rows are ranked one by one on the host, with fewer operations."""
NUM_BINS = 2048
BINS_PER_NAT = 64
"""Of `keep_top_mass`: a bin spans a factor of 1.016 in weight; the last one has all weights beyond e^-32."""


class TopTokens(NamedTuple):
    """The highest tokens of some rows, in the order of the ranking; both are [N, count]."""

    values: Array
    ids: Array


class RankedRows:
    """Some of the rows [M, vocab] of a contiguous tensor, whose highest tokens are found on request.

    Args:
        rows: are read in place, not copied.
        index: [N], the rows in the order in which the methods number them. None: all rows.
        scratch: memory for a CPU, where numpy ranks in a fraction of the time. None: the methods for a device
            are used, and rank the same.
    """

    def __init__(self, rows: torch.Tensor, index: Ids | None = None, scratch: Scratch | None = None) -> None:
        self.vocab_size, self.device = rows.shape[-1], rows.device
        self.dtype = torch.promote_types(rows.dtype, torch.float32)
        self._rows = rows
        self._index = np.arange(len(rows)) if index is None else index
        self._is_range = bool((self._index[1:] == self._index[:-1] + 1).all())
        self._scratch = scratch
        self._maxima: torch.Tensor | None = None

    def max(self) -> Array:
        """Return [N]: the maximum of each row, in float32 or wider, NaN if the row contains one."""
        maxima = self._group_maxima().amax(dim=1)
        return maxima if self._scratch is None else maxima.numpy()

    def take(self, some: Ids | slice) -> torch.Tensor:
        """Return these rows in float32 or wider, valid until the next call. Do not change them."""
        index = self._index[some]
        if self._is_view(some):
            return self._rows[index[0] : index[-1] + 1]
        if self._scratch is not None:
            return self._scratch.copy_rows(self._rows, index, self.dtype)
        return self._rows.index_select(0, torch.from_numpy(index).to(self.device)).to(self.dtype)

    def minus(self, some: Ids | slice, numbers: torch.Tensor) -> torch.Tensor:
        """Return these rows minus a number each [N, 1], valid until the next call. The caller may change
        them."""
        if not self._is_view(some):
            return self.take(some).sub_(numbers)
        rows = self.take(some)
        out = None if self._scratch is None else self._scratch.get("rows", rows.shape, self.dtype)
        return torch.sub(rows, numbers, out=out)

    def gather(self, columns: Array) -> Array:
        """Return [N, M]: the numbers of the first N rows in their columns [N, M], in float32 or wider."""
        first = self._index[: len(columns), None] * self.vocab_size
        if self._scratch is not None:
            return self._numbers(columns + first)
        flat = columns + torch.from_numpy(first).to(self.device)
        return self._rows.view(-1).take(flat).to(self.dtype)

    def top(self, some: Ids, count: int) -> TopTokens:
        """Return the `count` highest tokens of these rows, ties by ascending id.

        Of several tokens that tie with the last one, any may be left out.
        """
        return (self._top_on_device if self._scratch is None else self._top_on_host)(some, count)

    def _is_view(self, some: Ids | slice) -> bool:
        is_range = isinstance(some, slice) and self._is_range
        return self.dtype == self._rows.dtype and (is_range or len(self._index[some]) == 1)

    def _group_maxima(self) -> torch.Tensor:
        """Return [N, groups]."""
        if self._maxima is None:
            if self._scratch is None:
                maxima = _maxima(self.take(slice(None)))
            else:
                maxima = self._maxima_on_host()
            self._maxima = maxima.to(self.dtype)
        return self._maxima

    def _maxima_on_host(self) -> torch.Tensor:
        if self._is_range:
            rows = self._rows[self._index[0] : self._index[-1] + 1]
            return torch.cat([_maxima(rows[part]) for part in _slices(len(rows), MAX_HOST_ROWS)])
        first, end = int(self._index.min()), int(self._index.max()) + 1
        if end - first > 2 * len(self._index):
            return torch.cat([_maxima(self._rows[row : row + 1]) for row in self._index.tolist()])
        # To read all rows of the range is quicker than to read its rows one by one.
        rows = self._rows[first:end]
        parts = [_maxima(rows[part]) for part in _slices(len(rows), MAX_HOST_ROWS)]
        return torch.cat(parts)[torch.from_numpy(self._index - first)]

    def _numbers(self, flat: Ids) -> NDArray[Any]:
        """Return the numbers at some places of all rows, in float32 or wider, on a CPU."""
        return self._rows.view(-1).take(torch.from_numpy(flat)).to(self.dtype).numpy()

    def _top_on_device(self, some: Ids, count: int) -> TopTokens:
        values, ids = self.take(some).topk(count, sorted=False)
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
        return TopTokens(values, ids.gather(1, order))

    def _top_on_host(self, some: Ids, count: int) -> TopTokens:
        ids = np.empty((len(some), count), dtype=np.int64)
        maxima = self._group_maxima().numpy()
        is_grouped = (
            len(some) >= MIN_GROUPED_ROWS
            and self.dtype == torch.float32
            and 2 * count * GROUP <= self.vocab_size
        )
        for place in _slices(len(some), MAX_HOST_ROWS):
            rows = some[place]
            if is_grouped:
                is_found, ids[place] = self._top_in_groups(self._index[rows], maxima[rows], count)
            else:
                is_found = np.zeros(len(rows), dtype=np.bool_)
            for missing in np.flatnonzero(~is_found):
                row = self._rows[int(self._index[rows[missing]])].to(self.dtype).numpy()
                ids[place][missing] = _top_of_row(row, maxima[rows[missing]], count)
        return TopTokens(self._numbers(self._index[some][:, None] * self.vocab_size + ids), ids)

    def _top_in_groups(
        self, rows: Ids, maxima: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.bool_], Ids]:
        """Return bool [N] and int64 [N, count]: whether a row was ranked, and the ids of its highest tokens.

        At least `count` tokens reach the count-th highest maximum, and seldom many more: only rows with many
        ties are not ranked. Only the groups whose maximum reaches it are read.
        """
        num_groups = self.vocab_size // GROUP
        bound = np.partition(maxima, -count, axis=1)[:, -count, None]
        reaches = maxima >= bound
        num_reaching = reaches.sum(axis=1)
        is_found = (num_reaching >= count) & (num_reaching <= 2 * count)
        reaches[~is_found] = False
        place, group = np.nonzero(reaches)
        ids = group[:, None] + num_groups * np.arange(GROUP)
        values = self._numbers(rows[place][:, None] * self.vocab_size + ids)
        is_candidate = values >= bound[place]
        # After the groups come the last tokens, alone: number g is the token g + (GROUP - 1) * num_groups.
        is_candidate[group >= num_groups, :-1] = False
        found = np.flatnonzero(is_candidate)
        place, ids = place[found // GROUP], ids.reshape(-1)[found]
        # Sorted as integers: first the inverted value, then the id. Adding 0.0 makes -0.0 equal to 0.0.
        bits = (values.reshape(-1)[found] + np.float32(0)).view(np.int32)
        key = ((~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).astype(np.int64) << 32) | ids
        starts = np.searchsorted(place, np.arange(len(rows)))
        column = np.arange(len(place)) - starts[place]
        width = max(count, int(column.max(initial=0)) + 1)
        keys = np.full((len(rows), width), np.iinfo(np.int64).max)
        keys[place, column] = key
        keys.sort(axis=1)
        return is_found, np.minimum(keys[:, :count] & 0xFFFFFFFF, self.vocab_size - 1)


def _slices(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _top_of_row(row: NDArray[Any], maxima: NDArray[Any], count: int) -> Ids:
    """Return the ids of the `count` highest tokens of one row, which all tokens may be."""
    bound = _nth_highest(maxima if len(maxima) >= count else row, count)
    candidates = np.flatnonzero(row >= bound)
    if len(candidates) > 2 * count:
        candidates = _drop_ties(candidates, row, bound, count)
    if len(candidates) < count:
        # The row has a NaN, so its ranking is not used.
        return np.zeros(count, dtype=np.int64)
    ranked: Ids = candidates[(-row[candidates]).argsort(kind="stable")[:count]]
    return ranked


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
