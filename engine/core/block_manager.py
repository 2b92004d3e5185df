"""BlockManager: who owns which block of the KV cache, and which computed blocks can be shared.

Knows nothing of tensors (a block is a number), nor of the order among sequences: that is the scheduler's.
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
    """One block of the KV cache. `hash` is set while its content is known: full and computed."""

    block_id: int
    ref_count: int = 0
    hash: bytes | None = None
    promised: bytes | None = None
    """The hash that it will have: its owner is about to compute it."""
    promised_priority: int = 0
    """How urgent the owner was that promised it."""


def hash_block(parent: bytes, token_ids: list[int]) -> bytes:
    """The name of a full block: a 16-byte digest of everything its K/V depend on.

    `parent` is the hash of the block before it, or of the salt. Cryptographic, because a collision would
    show one user's text to another; over little-endian bytes, so that it is the same in every process.
    """
    return blake2b(parent + struct.pack(f"<{len(token_ids)}q", *token_ids), digest_size=16).digest()


class BlockManager:
    """Blocks with reference counts; the free list is the prefix cache.

    Every block is in one of two states:

        used   ref_count >= 1: in the block tables of that many sequences
        free   ref_count == 0: in the free list, next to be reused first

        free list   [ nothing known | least recently freed ........ most recently freed ]
                                      these keep their hash, and are taken back on a prefix hit

    A full block is known by the hash of (its parent's hash, its tokens, the salt) once its K/V are computed.
    Until then it is promised: who begins with the same tokens can wait for it instead of computing it too.
    A sequence's blocks are freed from its tail, so a tail is evicted before the head that it hangs on.
    Every operation is O(1) for each block it touches.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        assert num_blocks >= 1, num_blocks
        assert block_size >= 1, block_size
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        # Ordered by when a block is reused; the values mean nothing.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: dict[bytes, int] = {}
        self._promised: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence uses; the cached ones among them count."""
        return len(self._free)

    @property
    def num_cached_blocks(self) -> int:
        return len(self._cached)

    def num_required_blocks(self, num_tokens: int) -> int:
        """Blocks that hold the K/V of so many tokens."""
        return -(-num_tokens // self.block_size)

    def match_prefix(self, sequence: Sequence) -> list[int]:
        """Ids of the longest run of computed blocks that the sequence begins with; takes none of them.

        The block of the last token is never among them: that token must be computed for its logits.
        """
        if not self._shares(sequence) or sequence.needs_prompt_logits:
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

    def is_prefix_promised(self, sequence: Sequence) -> bool:
        """Whether another sequence is about to compute the block that this one would compute first.

        A less urgent one does not count: it may wait long for its own turn.
        """
        if sequence.needs_prompt_logits or not sequence.prefix_cache:
            return False
        num_matched = len(self.match_prefix(sequence))
        hashes = sequence.block_hashes[num_matched : (sequence.num_tokens - 1) // self.block_size]
        promised = self._promised.get(hashes[0]) if hashes else None
        return promised is not None and self._blocks[promised].promised_priority >= sequence.priority

    def can_allocate(self, sequence: Sequence, num_spare: int = 0) -> bool:
        """Whether all of the sequence's tokens fit and `num_spare` blocks stay free."""
        matched = self.match_prefix(sequence)
        # A match that nobody uses right now leaves the free list too.
        num_shared = sum(1 for block_id in matched if self._blocks[block_id].ref_count > 0)
        return self.num_required_blocks(sequence.num_tokens) - num_shared + num_spare <= len(self._free)

    def num_to_free(self, sequence: Sequence, victims: Iterable[Sequence], num_spare: int) -> int:
        """How many of `victims`, in their order, must be freed until the sequence fits.

        0 if it does not fit even without all of them. `num_spare` blocks must stay free, one less for each
        sequence that is freed.
        """
        victims = list(victims)
        matched = set(self.match_prefix(sequence))
        num_shared = sum(1 for block_id in matched if self._blocks[block_id].ref_count > 0)
        num_missing = self.num_required_blocks(sequence.num_tokens) - num_shared + num_spare - len(self._free)
        # Cheap, and true of most that do not fit.
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
        """Give blocks for all of the sequence's tokens; those of the prefix hit count as computed.

        Only after `can_allocate` said yes.
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
        has_grown = self.append(sequence, sequence.num_tokens)
        assert has_grown, sequence.request_id
        if self._shares(sequence):
            self._promise(sequence, num_cached)

    def append(self, sequence: Sequence, num_tokens: int) -> bool:
        """Grow the block table until it holds `num_tokens`; False, and nothing changed, if blocks lack."""
        num_missing = self.num_required_blocks(num_tokens) - len(sequence.block_table)
        if num_missing > len(self._free):
            return False
        for _ in range(num_missing):
            sequence.block_table.append(self._take_free_block())
        return True

    def trim(self, sequence: Sequence, num_tokens: int) -> None:
        """Take back the blocks behind those that hold `num_tokens`; nothing is known of what they hold."""
        table = sequence.block_table
        while len(table) > self.num_required_blocks(num_tokens):
            block = self._blocks[table.pop()]
            assert block.ref_count == 1, block
            assert block.hash is None, block
            assert block.promised is None, block
            block.ref_count = 0
            self._free[block.block_id] = None
            self._free.move_to_end(block.block_id, last=False)

    def register_computed(self, sequence: Sequence, num_computed_before: int) -> None:
        """Make the blocks known that were completed since `num_computed_before` tokens were computed."""
        if not self._shares(sequence):
            return
        num_full = sequence.num_computed_tokens // self.block_size
        self._extend_hashes(sequence, num_full)
        for index in range(num_computed_before // self.block_size, num_full):
            block = self._blocks[sequence.block_table[index]]
            assert block.hash is None, block
            self._unpromise(block)
            # The same tokens computed twice at once: the first copy is the known one, the second
            # stays anonymous and is reused first.
            if self._cached.setdefault(sequence.block_hashes[index], block.block_id) == block.block_id:
                block.hash = sequence.block_hashes[index]

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back. What was computed stays known until its block is reused."""
        for block_id in reversed(sequence.block_table):
            block = self._blocks[block_id]
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = None
                self._unpromise(block)
                if block.hash is None:
                    self._free.move_to_end(block_id, last=False)
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0

    def forget(self) -> None:
        """Make every block unknown, because the KV cache has lost what it held. Only while none is used."""
        assert self.num_free_blocks == self.num_blocks
        for block_id in self._cached.values():
            self._blocks[block_id].hash = None
        self._cached.clear()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the books balance, given every sequence that holds blocks.

        No block is lost, none is owned by two without being counted twice, and every name leads to its block.
        """
        uses = Counter(block_id for sequence in sequences for block_id in set(sequence.block_table))
        tables = Counter(block_id for sequence in sequences for block_id in sequence.block_table)
        assert uses == tables, "a block table names a block twice"
        for block in self._blocks:
            assert block.ref_count == uses[block.block_id], (block, uses[block.block_id])
            assert (block.ref_count == 0) == (block.block_id in self._free), block
            assert block.hash is None or self._cached.get(block.hash) == block.block_id, block
        assert len(self._free) + len(uses) == self.num_blocks
        for block_hash, block_id in self._cached.items():
            assert self._blocks[block_id].hash == block_hash, block_id

        for block_hash, block_id in self._promised.items():
            assert self._blocks[block_id].promised == block_hash, block_id
            assert self._blocks[block_id].ref_count == 1, block_id
        assert sum(block.promised is not None for block in self._blocks) == len(self._promised)

    def _shares(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.prefix_cache

    def _promise(self, sequence: Sequence, num_cached: int) -> None:
        """Make it known that the full blocks behind the `num_cached` first ones will be computed."""
        num_full = sequence.num_tokens // self.block_size
        self._extend_hashes(sequence, num_full)
        for index in range(num_cached, num_full):
            block = self._blocks[sequence.block_table[index]]
            block_hash = sequence.block_hashes[index]
            other = self._promised.get(block_hash)
            if other is not None:
                if self._blocks[other].promised_priority >= sequence.priority:
                    continue
                self._unpromise(self._blocks[other])
            self._promised[block_hash] = block.block_id
            block.promised, block.promised_priority = block_hash, sequence.priority

    def _unpromise(self, block: Block) -> None:
        if block.promised is not None:
            del self._promised[block.promised]
            block.promised = None

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
