"""The highest tokens of rows of numbers, ranked by (number descending, id ascending), without ranking all.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["RankedRows", "Ranking", "first_highest"]

Ids = NDArray[np.int64]

GROUP = 16
"""Tokens whose maximum is looked at before they are."""
BLOCK = 512
"""Neighbours whose maximum is looked at where only the highest is asked for."""


class Ranking:
    """The highest tokens of some rows, as they are ranked: values and ids, both [N, count]."""

    def __init__(self, values: torch.Tensor, ids: torch.Tensor) -> None:
        self.values = values
        self.ids = ids
        self.sorted_ids, self._order = ids.sort(dim=-1)

    def by_id(self, ranked: torch.Tensor) -> torch.Tensor:
        """What belongs to the tokens as they are ranked, as they stand in `sorted_ids`."""
        return ranked.gather(1, self._order)


class RankedRows:
    """Rows [N, vocab] that are ranked as far as they are asked for.

    Args:
        places, changed: rows that stand in place of some; the others are read where they lie.
    """

    def __init__(
        self, rows: torch.Tensor, places: Ids | None = None, changed: torch.Tensor | None = None
    ) -> None:
        self.vocab_size, self.device = rows.shape[-1], rows.device
        self.dtype = torch.promote_types(rows.dtype, torch.float32)
        self._rows = list(rows.unbind())
        self._maxima = _maxima(rows).to(self.dtype)
        if places is not None and changed is not None:
            for place, row in zip(places.tolist(), changed.unbind(), strict=True):
                self._rows[place] = row
            self._maxima[torch.from_numpy(places).to(self.device)] = _maxima(changed)

    def highest(self) -> NDArray[np.float64]:
        """[N]: the highest number of each row, NaN where there is one."""
        result: NDArray[np.float64] = self._maxima.amax(dim=1).double().cpu().numpy()
        return result

    def take(self, places: Ids) -> torch.Tensor:
        """A copy of some rows, in float32 or wider."""
        taken = torch.empty(len(places), self.vocab_size, dtype=self.dtype, device=self.device)
        for row, place in zip(taken.unbind(), places.tolist(), strict=True):
            row.copy_(self._rows[place])
        return taken

    def ranked(self, places: Ids, count: int) -> Ranking:
        """The `count` highest tokens of these rows, equals by ascending id; of those that equal the last
        one, any may be left out."""
        return (self._ranked_on_host if self.device.type == "cpu" else self._ranked_there)(places, count)

    def _ranked_there(self, places: Ids, count: int) -> Ranking:
        values, ids = self.take(places).topk(count, sorted=False)
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
        return Ranking(values, ids.gather(1, order))

    def _ranked_on_host(self, places: Ids, count: int) -> Ranking:
        """Row by row with numpy, at half of the time that torch takes."""
        maxima = self._maxima.numpy()
        values = np.empty((len(places), count), dtype=maxima.dtype)
        ids = np.empty((len(places), count), dtype=np.int64)
        # Written to again and again, so that they stay in the processor's cache.
        buffer = torch.empty(self.vocab_size, dtype=self.dtype)
        reaches = np.empty(self.vocab_size, dtype=np.bool_)
        for index, place in enumerate(places.tolist()):
            held = self._rows[place]
            row = (held if held.dtype == self.dtype else buffer.copy_(held)).numpy()
            bound = _nth_highest(maxima[place] if maxima.shape[1] >= count else row, count)
            # No fewer than `count` reach the count-th highest maximum, and seldom many more.
            reaching = np.flatnonzero(np.greater_equal(row, bound, out=reaches))
            if len(reaching) > 2 * count:
                reaching = _without_equals(reaching, row, bound, count)
            negated = -row[reaching]
            order = negated.argsort(kind="stable")[:count]
            values[index] = -negated[order]
            ids[index] = reaching[order]
        return Ranking(torch.from_numpy(values), torch.from_numpy(ids))


def _nth_highest(values: NDArray[Any], n: int) -> Any:
    return np.partition(values, len(values) - n)[len(values) - n]


def _without_equals(ids: Ids, row: NDArray[Any], bound: float, count: int) -> Ids:
    """Of the ids, those above the bound and `count` of those that equal it, the first: thousands may, -inf
    above all."""
    is_above = row[ids] > bound
    return np.sort(np.concatenate([ids[is_above], ids[~is_above][:count]]))


def _maxima(rows: torch.Tensor) -> torch.Tensor:
    """The maxima of groups of GROUP tokens, and what is left over: no two of the same token.

    Group g of n is tokens g, g + n, ...: maxima of neighbours are found together.
    """
    num_groups = rows.shape[-1] // GROUP
    end = num_groups * GROUP
    maxima = rows[:, :end].reshape(len(rows), GROUP, num_groups).amax(dim=1)
    return maxima if end == rows.shape[-1] else torch.cat([maxima, rows[:, end:]], dim=1)


def first_highest(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest number of each row of [N, vocab] and the first id that has it; NaN is the highest of all.

    In two steps, at a third of the time of one: a maximum without its index is found with vectors.
    """
    vocab_size = rows.shape[-1]
    end = vocab_size // BLOCK * BLOCK
    blocks = rows[:, :end].reshape(len(rows), end // BLOCK, BLOCK).amax(dim=-1)
    if end < vocab_size:
        blocks = torch.cat([blocks, rows[:, end:].amax(dim=-1, keepdim=True)], dim=1)
    block = blocks.max(dim=-1).indices
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=rows.device)
    # Beyond the end the last token is repeated, behind itself.
    highest = rows.gather(1, ids.clamp_(max=vocab_size - 1)).max(dim=-1)
    return highest.values, ids.gather(1, highest.indices[:, None])[:, 0]
