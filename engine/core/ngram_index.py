"""NgramIndex: where each pair and each triple of tokens occurred last in a text, in bounded memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NgramIndex", "num_index_bytes"]

_MAX_NUM_SLOTS: Final = 2**17
_MIN_BATCH: Final = 48
"""Fewer tokens are added faster one by one."""
_FIRST: Final = 0x1B873593
_SECOND: Final = 0x165667B1
_THIRD: Final = 0x0C2B2AE3
"""Odd numbers below 2**29: the sum of their products with three ids below 2**31 fits an int64."""


def num_index_bytes(max_num_tokens: int) -> int:
    """Return the memory of the index of a text of at most this many tokens, in bytes.

    It is 16 to 32 for each token, and at most a mebibyte."""
    return 2 * 4 * _num_slots(max_num_tokens)


class NgramIndex:
    """The index after the last occurrence of each pair and each triple of tokens of one text.

    Two hash tables with open addressing and linear probing (Knuth, volume 3, 6.4, algorithm L). A slot has
    only this index, or 0: the tokens are read from the text. At most half of the slots of a table are used:
    if a text has more tokens, all but the last ones are forgotten, which are a quarter of the slots. When
    this happens depends only on the length of the text.

    The methods take the tokens of the text, which only grows. They are added in order.
    """

    def __init__(self, max_num_tokens: int) -> None:
        num_slots = _num_slots(max_num_tokens)
        self._mask = num_slots - 1
        self._quarter = num_slots // 4
        # Single elements of an array are read faster than those of a numpy array, which shares the memory.
        self._pairs, self._triples = (array("i", bytes(4 * num_slots)) for _ in range(2))

    def add(self, tokens: Sequence[int], end: int) -> tuple[int, int]:
        """Add the pair and the triple before `end`.

        Returns the index after the last occurrence of the triple before, or else of the pair, and the length
        of what was found. The index is 0 if neither occurred.
        """
        if (end - 1) & (self._quarter - 1) == 0:
            self._forget(tokens, end - 1)
        if end < 2:
            return 0, 0
        third, second, mask = tokens[end - 1], tokens[end - 2], self._mask
        key = second * _SECOND + third * _THIRD
        slot = (key ^ key >> 15) & mask
        slots = self._pairs
        while (pair := slots[slot]) and (tokens[pair - 1] != third or tokens[pair - 2] != second):
            slot = slot + 1 & mask
        slots[slot] = end
        if end < 3:
            return pair, 2
        first = tokens[end - 3]
        key += first * _FIRST
        slot = (key ^ key >> 15) & mask
        slots = self._triples
        while (triple := slots[slot]) and (
            tokens[triple - 1] != third or tokens[triple - 2] != second or tokens[triple - 3] != first
        ):
            slot = slot + 1 & mask
        slots[slot] = end
        return (triple, 3) if triple else (pair, 2)

    def add_all(self, tokens: Sequence[int], text: NDArray[np.int32], begin: int, end: int) -> None:
        """Add the tokens from index `begin` to `end` - 1.

        Args:
            text: the same tokens as an array.
        """
        if end - begin < _MIN_BATCH:
            for each in range(begin + 1, end + 1):
                self.add(tokens, each)
            return
        while begin < end:
            if begin % self._quarter == 0:
                self._forget(tokens, begin)
            stop = min(end, (begin // self._quarter + 1) * self._quarter)
            self._add_batch(tokens, text, np.arange(begin + 1, stop + 1))
            begin = stop

    def _forget(self, tokens: Sequence[int], num_tokens: int) -> None:
        """Forget all but the last of the tokens that were added, if these may use half of the slots."""
        if num_tokens < 2 * self._quarter:
            return
        self._pairs, self._triples = (array("i", bytes(4 * (self._mask + 1))) for _ in range(2))
        text = np.asarray(tokens[:num_tokens], dtype=np.int32)
        self._add_batch(tokens, text, np.arange(num_tokens - self._quarter + 1, num_tokens + 1))

    def _add_batch(self, tokens: Sequence[int], text: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        for table, factors in ((self._pairs, (_SECOND, _THIRD)), (self._triples, (_FIRST, _SECOND, _THIRD))):
            left, slots = _add_ngrams(table, text, ends[ends >= len(factors)], factors)
            for end, slot in zip(left.tolist(), slots.tolist(), strict=True):
                _add_ngram(table, tokens, end, slot, len(factors))


def _add_ngrams(
    table: array[int], text: NDArray[np.int32], ends: NDArray[np.int64], factors: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add most of the n-grams before `ends` to a table; there is a factor for each of their tokens.

    Returns those that are left, which are so few that adding them one by one is faster, and the slot of each.
    Equal n-grams look at the same slots at the same time, so all or none of them are left.
    """
    entries = np.frombuffer(table, dtype=np.int32)
    mask = len(entries) - 1
    length = len(factors)
    grams = [text[ends - length + place].astype(np.int64) for place in range(length)]
    keys = np.zeros_like(ends)
    for gram, factor in zip(grams, factors, strict=True):
        keys += gram * factor
    slots = (keys ^ keys >> 15) & mask
    while len(ends) >= _MIN_BATCH:
        is_empty = entries[slots] == 0
        # If several n-grams want a slot, any of them gets it, and different ones look further.
        entries[slots[is_empty]] = ends[is_empty]
        found = entries[slots].astype(np.int64)
        is_same = np.ones(len(ends), dtype=np.bool_)
        for place, gram in enumerate(grams):
            is_same &= text[found - length + place] == gram
        np.maximum.at(entries, slots[is_same], ends[is_same].astype(np.int32))
        is_left = ~is_same
        ends, slots = ends[is_left], (slots[is_left] + 1) & mask
        grams = [gram[is_left] for gram in grams]
    return ends, slots


def _add_ngram(table: array[int], tokens: Sequence[int], end: int, slot: int, length: int) -> None:
    ngram = tokens[end - length : end]
    while (found := table[slot]) and tokens[found - length : found] != ngram:
        slot = slot + 1 & len(table) - 1
    table[slot] = end


def _num_slots(max_num_tokens: int) -> int:
    """Return the slots of a table: 2 to 4 for each token, up to a limit."""
    return min(1 << (2 * max(2, max_num_tokens) - 1).bit_length(), _MAX_NUM_SLOTS)
