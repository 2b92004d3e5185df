"""Philox4x32-10: random numbers as a function of a key and a counter, without state.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NUM_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = tuple[NDArray[np.uint64], ...]


def philox4x32(counter: Words, key: Words) -> Words:
    """Return four 32-bit words for each counter (four words) and key (two words).

    A word is a uint64 [N] below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        # The products of two 32-bit words fit into 64 bits.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def uniforms(seeds: ArrayLike, choices: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Return float64 [N]: a number in [0, 1) with 53 random bits for each (seed, choice, position).

    The seed (64 bits) is the key; position (64 bits) and choice (32 bits) are the counter.
    """
    seed, choice, position = (np.asarray(values, dtype=np.uint64) for values in (seeds, choices, positions))
    counter = (position & _LOW, position >> _HALF, choice, np.zeros_like(choice))
    high, low, _, _ = philox4x32(counter, (seed & _LOW, seed >> _HALF))
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53
