"""BlockManager: which sequences use which blocks of the KV cache, and the prefix cache of computed blocks.

Does not know tensors (a block is a number) or the order of sequences, which is the scheduler's.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from pagefleet.engine.core.sequence import Sequence

__all__ = ["Block", "BlockManager", "hash_block"]


@dataclass(slots=True)
class Block:
    """One block of the KV cache."""

    block_id: int
    ref_count: int = 0
    hash: bytes | None = None
    """Its hash in the prefix cache: set while it is full and computed."""
    pending_hash: bytes | None = None
    """The hash that it will have when its sequence has computed it."""
    pending_priority: int = 0
    """The priority of that sequence."""


def hash_block(parent: bytes, token_ids: list[int]) -> bytes:
    """Return the hash of a full block: a 16-byte digest of everything that its K/V depend on.

    `parent` is the hash of the previous block, or of the salt. The hash is cryptographic, because a collision
    would show one user's text to another; the bytes are little-endian, so it is the same in every process.
    """
    return blake2b(parent + struct.pack(f"<{len(token_ids)}q", *token_ids), digest_size=16).digest()


class BlockManager:
    """Allocates the blocks of the KV cache, with reference counts; its free list is the prefix cache.

    Every block is in one of two states:

        used   ref_count >= 1: in the block tables of that many sequences
        free   ref_count == 0: in the free list, which is reused from its front

        free list   [ without hash | least recently freed ........ most recently freed ]
                                     these keep their hash and are reused on a prefix cache hit

    A full block is found by the hash of (its parent's hash, its tokens, the salt) once its K/V are computed.
    Until then it is pending: a sequence with the same prefix can wait for it instead of computing it too. The
    blocks of a sequence are freed from its tail, so a block is evicted before the blocks that it depends on.
    Every operation is O(1) for each block that it touches.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        assert num_blocks >= 1, num_blocks
        assert block_size >= 1, block_size
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        # An ordered set: the block that is reused next is the first key.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._pending: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses, including cached ones."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        return len(self._cached)

    def num_required_blocks(self, num_tokens: int) -> int:
        """Return how many blocks the K/V of `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> list[int]:
        """Return the ids of the longest run of cached blocks that the sequence begins with; allocate none.

        The block of the last token is never included: that token must be computed for its logits.
        """
        if not self._uses_prefix_cache(sequence) or sequence.needs_prompt_logits:
            return []
        matched: list[int] = []
        num_full = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, num_full)
        for block_hash in sequence.block_hashes[:num_full]:
            block_id = self._cached.get(block_hash)
            if block_id is None:
                break
            matched.append(block_id)
        return matched

    def is_prefix_pending(self, sequence: Sequence) -> bool:
        """Return whether another sequence is about to compute the first block that this one lacks.

        A sequence of lower priority does not count: it may be delayed for long.
        """
        if sequence.needs_prompt_logits or not sequence.prefix_cache:
            return False
        num_matched = len(self.match_prefix(sequence))
        hashes = sequence.block_hashes[num_matched : (sequence.num_tokens - 1) // self.block_size]
        pending = self._pending.get(hashes[0]) if hashes else None
        return pending is not None and self._blocks[pending].pending_priority >= sequence.priority

    def can_allocate(self, sequence: Sequence, num_reserved: int = 0) -> bool:
        """Return whether blocks for all its tokens can be allocated with `num_reserved` blocks left free."""
        matched = self.match_prefix(sequence)
        # A match that no sequence uses is taken from the free list too.
        num_shared = sum(1 for block_id in matched if self._blocks[block_id].ref_count > 0)
        return self.num_required_blocks(sequence.num_tokens) - num_shared + num_reserved <= len(self._free)

    def num_victims(self, sequence: Sequence, victims: Iterable[Sequence], num_reserved: int) -> int:
        """Return how many of `victims`, in their order, must be preempted until the sequence fits.

        Returns 0 if preempting all of them is not enough. `num_reserved` blocks must stay free, one less for
        each preempted sequence.
        """
        victims = list(victims)
        matched = set(self.match_prefix(sequence))
        num_shared = sum(1 for block_id in matched if self._blocks[block_id].ref_count > 0)
        num_missing = (
            self.num_required_blocks(sequence.num_tokens) - num_shared + num_reserved - len(self._free)
        )
        # A cheap check that rejects most sequences that do not fit.
        if len(set().union(*(victim.block_table for victim in victims))) + len(victims) < num_missing:
            return 0
        uses: Counter[int] = Counter()
        for num_freed, victim in enumerate(victims, 1):
            num_missing -= 1
            for block_id in victim.block_table:
                uses[block_id] += 1
                if uses[block_id] == self._blocks[block_id].ref_count and block_id not in matched:
                    num_missing -= 1
            if num_missing <= 0:
                return num_freed
        return 0

    def allocate(self, sequence: Sequence) -> None:
        """Allocate blocks for all tokens of the sequence; those found in the prefix cache count as computed.

        To be called only if `can_allocate` returns True.
        """
        assert not sequence.block_table, sequence.request_id
        for block_id in self.match_prefix(sequence):
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1
            sequence.block_table.append(block_id)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size
        num_cached = len(sequence.block_table)
        has_grown = self.grow(sequence, sequence.num_tokens)
        assert has_grown, sequence.request_id
        if self._uses_prefix_cache(sequence):
            self._add_pending(sequence, num_cached)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks until the table holds `num_tokens`; return False, with no change, if too few are
        free."""
        num_missing = self.num_required_blocks(num_tokens) - len(sequence.block_table)
        if num_missing > len(self._free):
            return False
        for _ in range(num_missing):
            sequence.block_table.append(self._take_free_block())
        return True

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Free the blocks after those that hold `num_tokens`; they must not have a hash."""
        table = sequence.block_table
        while len(table) > self.num_required_blocks(num_tokens):
            block = self._blocks[table.pop()]
            assert block.ref_count == 1, block
            assert block.hash is None, block
            assert block.pending_hash is None, block
            block.ref_count = 0
            self._free[block.block_id] = None
            self._free.move_to_end(block.block_id, last=False)

    def cache_full_blocks(self, sequence: Sequence, num_computed_before: int) -> None:
        """Add the blocks to the prefix cache that became full since `num_computed_before` tokens were
        computed."""
        if not self._uses_prefix_cache(sequence):
            return
        num_full = sequence.num_computed_tokens // self.block_size
        self._extend_hashes(sequence, num_full)
        for index in range(num_computed_before // self.block_size, num_full):
            block = self._blocks[sequence.block_table[index]]
            assert block.hash is None, block
            self._remove_pending(block)
            # If two sequences computed the same tokens in parallel, the first copy is cached. The second has
            # no hash and is reused first.
            if self._cached.setdefault(sequence.block_hashes[index], block.block_id) == block.block_id:
                block.hash = sequence.block_hashes[index]

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence. Computed ones stay in the prefix cache until they are reused."""
        for block_id in reversed(sequence.block_table):
            block = self._blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                self._remove_pending(block)
                if block.hash is None:
                    self._free.move_to_end(block_id, last=False)
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0

    def reset_prefix_cache(self) -> None:
        """Remove all blocks from the prefix cache, because the KV cache lost its contents. None may be in
        use."""
        assert self.num_free_blocks == self.num_blocks
        for block_id in self._cached.values():
            self._blocks[block_id].hash = None
        self._cached.clear()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert the invariants, given all sequences that have blocks.

        Every block is used or free, reference counts agree with the block tables, and every hash leads to its
        block.
        """
        uses = Counter(block_id for sequence in sequences for block_id in set(sequence.block_table))
        tables = Counter(block_id for sequence in sequences for block_id in sequence.block_table)
        assert uses == tables, "a block is twice in one block table"
        for block in self._blocks:
            assert block.ref_count == uses[block.block_id], (block, uses[block.block_id])
            assert (block.ref_count == 0) == (block.block_id in self._free), block
            assert block.hash is None or self._cached.get(block.hash) == block.block_id, block
        assert len(self._free) + len(uses) == self.num_blocks
        for block_hash, block_id in self._cached.items():
            assert self._blocks[block_id].hash == block_hash, block_id

        for block_hash, block_id in self._pending.items():
            assert self._blocks[block_id].pending_hash == block_hash, block_id
            assert self._blocks[block_id].ref_count == 1, block_id
        assert sum(block.pending_hash is not None for block in self._blocks) == len(self._pending)

    def _uses_prefix_cache(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.prefix_cache

    def _add_pending(self, sequence: Sequence, num_cached: int) -> None:
        """Mark the full blocks after the first `num_cached` ones as pending."""
        num_full = sequence.num_tokens // self.block_size
        self._extend_hashes(sequence, num_full)
        for index in range(num_cached, num_full):
            block = self._blocks[sequence.block_table[index]]
            block_hash = sequence.block_hashes[index]
            other = self._pending.get(block_hash)
            if other is not None:
                if self._blocks[other].pending_priority >= sequence.priority:
                    continue
                self._remove_pending(self._blocks[other])
            self._pending[block_hash] = block.block_id
            block.pending_hash, block.pending_priority = block_hash, sequence.priority

    def _remove_pending(self, block: Block) -> None:
        if block.pending_hash is not None:
            del self._pending[block.pending_hash]
            block.pending_hash = None

    def _take_free_block(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        block = self._blocks[block_id]
        assert block.ref_count == 0, block
        if block.hash is not None:
            del self._cached[block.hash]
            block.hash = None
        block.ref_count = 1
        return block_id

    def _extend_hashes(self, sequence: Sequence, num_blocks: int) -> None:
        hashes, first = sequence.block_hashes, sequence.first_choice
        if first is not None and len(hashes) < num_blocks:
            num_shared = min(num_blocks, sequence.num_prompt_tokens // self.block_size)
            hashes += first.block_hashes[len(hashes) : num_shared]
        while len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else _salt_hash(sequence.cache_salt)
            start = len(hashes) * self.block_size
            hashes.append(hash_block(parent, sequence.token_ids[start : start + self.block_size]))


def _salt_hash(cache_salt: str) -> bytes:
    return blake2b(cache_salt.encode("utf-8", errors="surrogatepass"), digest_size=16).digest()
