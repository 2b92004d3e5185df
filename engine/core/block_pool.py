"""BlockPool: the KV cache blocks of one KV group, which are its prefix cache while they are free.

Does not know sequences: works on block tables, and on the hashes of a text's blocks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from pagefleet.engine.core.sequence import BlockTable
from pagefleet.engine.model_info import KVGroup

__all__ = ["Block", "BlockPool", "num_required_blocks"]


@dataclass(slots=True)
class Block:
    """One block of the KV cache."""

    block_id: int
    ref_count: int = 0
    hash: bytes | None = None
    """Its hash in the prefix cache: set while it is full and computed."""


def num_required_blocks(num_tokens: int, window: int | None, block_size: int) -> int:
    """Return how many blocks a sequence needs at once, so that `num_tokens` tokens can be computed.

    With a window, they are computed in chunks, and passed blocks are freed between them. The tokens that a
    query reads, itself included, lie in at most (window - 2) // block_size + 2 blocks. With one more, every
    chunk can have at least `block_size` tokens.
    """
    num_blocks = -(-num_tokens // block_size)
    return num_blocks if window is None else min(num_blocks, (window - 2) // block_size + 3)


class BlockPool:
    """The blocks that the layers of one group use, with reference counts.

    Every block is in one of two states:

        used   ref_count >= 1: in the block tables of that many sequences
        free   ref_count == 0: in the free list, which is reused from its front

        free list   [ without hash | least recently freed ........ most recently freed ]
                                     these keep their hash and are reused on a prefix cache hit

    The blocks of a sequence are freed from its tail, so a block is evicted before the blocks that it depends
    on. Those that its window has passed are freed earlier, so they are evicted before the window.
    """

    def __init__(self, group: KVGroup, block_size: int) -> None:
        assert group.num_blocks >= 1, group
        assert group.window is None or group.window >= 1, group
        self.window = group.window
        self.num_blocks = group.num_blocks
        self._block_size = block_size
        self._blocks = [Block(block_id) for block_id in range(group.num_blocks)]
        # An ordered set: the block that is reused next is the first key.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(group.num_blocks))
        self._cached: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses, including cached ones."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def num_passed(self, position: int) -> int:
        """Return how many blocks no query from `position` on can read: those before its window."""
        if self.window is None:
            return 0
        return max(0, position + 1 - self.window) // self._block_size

    def num_required(self, num_tokens: int) -> int:
        """See `num_required_blocks`."""
        return num_required_blocks(num_tokens, self.window, self._block_size)

    def num_matching(self, hashes: list[bytes], num_blocks: int) -> int:
        """Return the largest n <= `num_blocks` so that the blocks which a query after the first n reads are
        cached."""
        cached = self._cached
        if self.window is None:
            for index in range(num_blocks):
                if hashes[index] not in cached:
                    return index
            return num_blocks
        index = num_blocks
        while index > self.num_passed(num_blocks * self._block_size):
            index -= 1
            if hashes[index] not in cached:
                num_blocks = index
        return num_blocks

    def num_missing(self, matched: list[bytes], num_passed: int, num_tokens: int) -> int:
        """Return how many free blocks a sequence of `num_tokens` needs if it shares the blocks `matched`,
        after `num_passed` passed ones."""
        # A match that no sequence uses is taken from the free list too.
        num_shared = sum(1 for each in matched if self._blocks[self._cached[each]].ref_count > 0)
        return self.num_required(num_tokens - num_passed * self._block_size) - num_shared

    def num_victims(
        self, matched: list[bytes], num_missing: int, victims: Iterable[BlockTable]
    ) -> int | None:
        """Return how many of `victims`, in their order, must lose their blocks until `num_missing` are free.

        Blocks of `matched` do not count. Each victim also lowers `num_missing` by one. Returns None if all of
        them are not enough.
        """
        victims = list(victims)
        num_missing -= len(self._free)
        # A cheap check that rejects most sequences that do not fit.
        if len(set().union(*(victim.used for victim in victims))) + len(victims) < num_missing:
            return None
        kept = {self._cached[each] for each in matched}
        uses: Counter[int] = Counter()
        for num_freed, victim in enumerate(victims, 1):
            num_missing -= 1
            for block_id in victim.used:
                uses[block_id] += 1
                if uses[block_id] == self._blocks[block_id].ref_count and block_id not in kept:
                    num_missing -= 1
            if num_missing <= 0:
                return num_freed
        return None

    def allocate(self, matched: list[bytes], num_passed: int, num_tokens: int) -> BlockTable:
        """Return a new table: passed blocks, the cached blocks `matched`, and new ones, as many as
        `num_required`."""
        table = BlockTable([0] * num_passed, num_passed)
        for each in matched:
            block = self._blocks[self._cached[each]]
            if block.ref_count == 0:
                del self._free[block.block_id]
            block.ref_count += 1
            table.append(block.block_id)
        num_required = self.num_required(num_tokens - num_passed * self._block_size)
        self.extend(table, num_passed + num_required)
        return table

    def extend(self, table: BlockTable, num_blocks: int) -> None:
        """Append free blocks until the table has `num_blocks`, passed ones included."""
        for _ in range(num_blocks - len(table.block_ids)):
            table.append(self._take_free_block())

    def take(self, num_blocks: int) -> list[int]:
        """Return free blocks for new tables or the ends of tables; there must be as many."""
        return [self._take_free_block() for _ in range(num_blocks)]

    def shrink(self, table: BlockTable, num_blocks: int) -> None:
        """Free the blocks after the first `num_blocks`; they must not have a hash."""
        while len(table.block_ids) > num_blocks:
            block = self._blocks[table.block_ids.pop()]
            assert block.ref_count == 1, block
            assert block.hash is None, block
            self._release(block)

    def cache_block(self, block_id: int, block_hash: bytes) -> None:
        """Add one full block to the prefix cache, see `cache`."""
        block = self._blocks[block_id]
        assert block.hash is None, block
        if self._cached.setdefault(block_hash, block_id) == block_id:
            block.hash = block_hash

    def cache(self, block_ids: list[int], hashes: list[bytes]) -> None:
        """Add full blocks to the prefix cache.

        If two sequences computed the same tokens in parallel, the first copy is cached. The second has no
        hash and is reused first.
        """
        for block_id, block_hash in zip(block_ids, hashes, strict=True):
            self.cache_block(block_id, block_hash)

    def free_passed(self, table: BlockTable, position: int) -> None:
        """Free the blocks that no query from `position` on can read."""
        num_passed = self.num_passed(position)
        for index in range(table.num_passed, num_passed):
            self._release(self._blocks[table.block_ids[index]])
            table.block_ids[index] = 0
        table.num_passed = num_passed

    def free(self, table: BlockTable) -> None:
        """Free all blocks of the table. Computed ones stay in the prefix cache until they are reused."""
        for block_id in reversed(table.used):
            self._release(self._blocks[block_id])

    def reset(self) -> None:
        """Remove all blocks from the prefix cache. None may be in use."""
        assert len(self._free) == self.num_blocks
        for block_id in self._cached.values():
            self._blocks[block_id].hash = None
        self._cached.clear()

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Assert the invariants, given all tables."""
        uses = Counter(block_id for table in tables for block_id in set(table.used))
        assert uses == Counter(block_id for table in tables for block_id in table.used), (
            "a block is twice in one block table"
        )
        assert not any(any(table.block_ids[: table.num_passed]) for table in tables)
        for block in self._blocks:
            assert block.ref_count == uses[block.block_id], (block, uses[block.block_id])
            assert (block.ref_count == 0) == (block.block_id in self._free), block
            assert block.hash is None or self._cached.get(block.hash) == block.block_id, block
        assert len(self._free) + len(uses) == self.num_blocks
        for block_hash, block_id in self._cached.items():
            assert self._blocks[block_id].hash == block_hash, block_id

    def _release(self, block: Block) -> None:
        block.ref_count -= 1
        if block.ref_count == 0:
            self._free[block.block_id] = None
            if block.hash is None:
                self._free.move_to_end(block.block_id, last=False)

    def _take_free_block(self) -> int:
        block_id, _ = self._free.popitem(last=False)
        block = self._blocks[block_id]
        assert block.ref_count == 0, block
        if block.hash is not None:
            del self._cached[block.hash]
            block.hash = None
        block.ref_count = 1
        return block_id
