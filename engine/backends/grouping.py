"""Splitting sequences into groups of similar length, for kernels that pad a group to its longest member."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def group_by_length(lengths: NDArray[np.int64], group_cost: int) -> list[NDArray[np.int64]]:
    """The partition that costs least, where a group costs its size times its longest, plus `group_cost`.

    lengths int64 [S]; returns arrays of indices into it, longest sequences first. A cheapest partition has
    groups that are contiguous in sorted order, so dynamic programming over that order finds one: the best
    cost of the first `end` sequences is the best of the first `start`, plus one group of the rest. O(S^2).
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
