"""RowKind: how a row is drawn, so that all rows of a kind are drawn together. Does not know logits."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sampling.sampling_batch import SamplingBatch

__all__ = ["RowKind", "row_kinds"]


class RowKind(IntEnum):
    """How a row is drawn. Kinds that share an operation are neighbours."""

    GREEDY = 0
    FREE = 1
    """Without a filter."""
    MASS = 2
    """top_p without top_k and min_p: a share of the whole vocabulary's weight."""
    MASS_TYPICAL = 3
    """The same, and typical_p."""
    RANK_TYPICAL = 4
    """top_k or min_p, maybe top_p, and typical_p."""
    RANK = 5
    """top_k or min_p, maybe top_p."""
    TYPICAL = 6
    """typical_p alone."""


_KINDS = np.array(
    [
        RowKind.FREE,
        RowKind.TYPICAL,
        RowKind.MASS,
        RowKind.MASS_TYPICAL,
        *(RowKind.RANK, RowKind.RANK_TYPICAL) * 2,
        *(RowKind.GREEDY,) * 8,
    ]
)
"""By 8 * greedy + 4 * (top_k or min_p) + 2 * top_p + typical_p."""


def row_kinds(batch: SamplingBatch, vocab_size: int) -> NDArray[np.int64]:
    """Return the `RowKind` of each row."""
    code = (batch.temperature == 0) * 8
    code += ((batch.top_k < vocab_size) | (batch.min_p > 0)) * 4
    code += (batch.top_p < 1) * 2
    code += batch.typical_p < 1
    kinds: NDArray[np.int64] = _KINDS[code]
    return kinds
