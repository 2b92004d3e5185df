"""Philox4x32-10: random numbers as a function of a key and a counter, without state.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NUM_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64) * np.arange(
    _NUM_ROUNDS, dtype=np.uint64
).reshape(-1, 1, 1)
"""[rounds, 2, 1]: what each round adds to the key."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

Words = tuple[NDArray[np.uint64], ...]


def philox4x32(counter: Words, key: Words) -> Words:
    """Return four 32-bit words for each counter (four words) and key (two words).

    A word is a uint64 [N] below 2**32.
    """
    # Even and odd words of the counter, each [2, N]: few operations, because each costs more than its words.
    even, odd = np.array(counter[::2]), np.array(counter[1::2])
    for round_key in (np.array(key) + _KEY_STEPS) & _LOW:
        # The products of two 32-bit words fit into 64 bits.
        products = even * _MULTIPLIERS
        even, odd = (products[::-1] >> _HALF) ^ odd ^ round_key, products[::-1] & _LOW
    return even[0], odd[0], even[1], odd[1]


def uniforms(seeds: ArrayLike, choices: ArrayLike, positions: ArrayLike) -> NDArray[np.float64]:
    """Return float64 [N]: a number in [0, 1) with 53 random bits for each (seed, choice, position).

    The seed (64 bits) is the key; position (64 bits) and choice (32 bits) are the counter.
    """
    seed, choice, position = (np.asarray(values, dtype=np.uint64) for values in (seeds, choices, positions))
    counter = (position & _LOW, position >> _HALF, choice, np.zeros_like(choice))
    high, low, _, _ = philox4x32(counter, (seed & _LOW, seed >> _HALF))
    bits = ((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53
