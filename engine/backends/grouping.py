"""Groups sequences by length, for kernels that pad each group to its longest sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_by_length(lengths: NDArray[np.int64], group_cost: int) -> list[NDArray[np.int64]]:
    """Return the cheapest partition; a group costs its size times its longest length, plus `group_cost`.

    lengths is int64 [S]. Returns arrays of indices into it, longest sequences first. The groups of a cheapest
    partition are contiguous in sorted order, so dynamic programming over that order finds one: the best cost
    of the first `end` sequences is that of the first `start`, plus one group with the others. O(S^2).
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    positions = np.arange(len(order) + 1)
    best = np.zeros(len(order) + 1, dtype=np.int64)
    cut = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        costs = best[:end] + ordered[:end] * (end - positions[:end]) + group_cost
        cut[end] = np.argmin(costs)
        best[end] = costs[cut[end]]
    groups = []
    end = len(order)
    while end > 0:
        groups.append(order[cut[end] : end])
        end = int(cut[end])
    return groups[::-1]
