"""The prefix of a ranking that a filter keeps, for rows that have their candidates in that order."""

from __future__ import annotations

from pagefleet.engine.sampling.arrays import Array, arange

__all__ = ["ends_above_last", "is_in_prefix"]


def is_in_prefix(weights: Array, sums: Array, mass: Array, is_limited: Array | None = None) -> Array:
    """Return bool [N, count]: whether a token is in the shortest prefix of the ranking that reaches `mass`.

    A token with a weight of 0 never is. `sums` are the running sums. Rows that are not `is_limited` keep all.
    """
    is_kept = weights > 0
    is_before = sums[:, :-1] < mass[:, None]
    is_kept[:, 1:] &= is_before if is_limited is None else is_before | ~is_limited[:, None]
    return is_kept


def ends_above_last(is_kept: Array, values: Array) -> Array:
    """Return bool [N]: whether the kept prefix ends above the value of the last candidate.

    If so, the tokens that are not candidates are not kept either.
    """
    last = (is_kept.sum(1) - 1).clip(min=0)
    return values[arange(len(values), values), last] > values[:, -1]
