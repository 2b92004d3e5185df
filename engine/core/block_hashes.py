"""Hashes of KV cache blocks: a name for everything that the K/V of a full block depend on.

Does not know which blocks exist; that is the block manager's.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.sequence import Sequence

__all__ = ["extend_hashes", "hash_block", "hash_blocks", "hash_salt"]


def hash_salt(cache_salt: str) -> bytes:
    """Return the parent of a text's first block."""
    return blake2b(cache_salt.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()


def hash_block(parent: bytes, packed: bytes) -> bytes:
    """Return the hash of one full block, see `hash_blocks`.

    `packed` are its token ids as little-endian int32.
    """
    return blake2b(parent + packed, digest_size=16).digest()


def hash_blocks(parent: bytes, token_ids: NDArray[np.int32], block_size: int) -> list[bytes]:
    """Return the hashes of the full blocks of `token_ids`: for each, a digest of 16 bytes.

    `parent` is the hash of the block before them, or of the salt. The hash is cryptographic, because a
    collision would show one user's text to another. The ids are hashed as little-endian int32, so a hash is
    the same in every process.
    """
    packed = token_ids.astype("<i4").tobytes()
    num_bytes = 4 * block_size
    hashes: list[bytes] = []
    for end in range(num_bytes, len(packed) + 1, num_bytes):
        parent = hash_block(parent, packed[end - num_bytes : end])
        hashes.append(parent)
    return hashes


def extend_hashes(sequence: Sequence, num_blocks: int, block_size: int) -> None:
    """Extend `block_hashes` to the sequence's first `num_blocks` blocks, which must be full."""
    hashes, first = sequence.block_hashes, sequence.first_choice
    if first is not None and len(hashes) < num_blocks:
        num_shared = min(num_blocks, sequence.num_prompt_tokens // block_size)
        hashes += first.block_hashes[len(hashes) : num_shared]
    if len(hashes) < num_blocks:
        parent = hashes[-1] if hashes else hash_salt(sequence.cache_salt)
        token_ids = sequence.token_ids[len(hashes) * block_size : num_blocks * block_size]
        hashes += hash_blocks(parent, token_ids, block_size)
