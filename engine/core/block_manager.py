"""BlockManager: which sequences use which blocks of the KV cache, and the prefix cache of computed blocks.

Does not know tensors (a block is a number) or the order of sequences, which is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.block_hashes import extend_hashes, hash_block, hash_salt
from pagefleet.engine.core.block_pool import BlockPool
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.outputs import KVGroupStats

__all__ = ["BlockManager"]


class BlockManager:
    """Allocates the blocks of the KV cache: a pool and, for each sequence, a block table for each KV group.

    In a group with a window, a block is freed as soon as no later token of its sequence can read it:

        block table   [ passed, 0 | window ............. | chunk ]
                                                         num_computed_tokens

    A group without a window has blocks for all tokens of a sequence from its admission on. One with a window
    has at first those that `BlockPool.num_required` counts; `grow` adds more for each chunk.

    A full block is found by the hash of (its parent's hash, its tokens, the salt) once its K/V are computed.
    A prefix is a hit if every group has the blocks that the token after it reads. Until a block is computed,
    its hash is pending: a sequence with the same prefix can wait for it instead of computing it too.

    Every operation is O(1) for each block that it touches.
    """

    def __init__(
        self, kv_groups: Iterable[KVGroup], block_size: int, enable_prefix_caching: bool = True
    ) -> None:
        assert block_size >= 1, block_size
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._pools = [BlockPool(group, block_size) for group in kv_groups]
        self.has_windows = any(pool.window is not None for pool in self._pools)
        # The sequences that will compute the blocks with these hashes.
        self._pending: dict[bytes, Sequence] = {}

    @property
    def num_groups(self) -> int:
        return len(self._pools)

    @property
    def num_blocks(self) -> int:
        """Blocks of the first group, which has no window if any group has none."""
        return self._pools[0].num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks of the first group that no sequence uses, including cached ones."""
        return self._pools[0].num_free

    @property
    def num_cached_blocks(self) -> int:
        """Blocks of the first group in the prefix cache."""
        return self._pools[0].num_cached

    @property
    def num_used_slots(self) -> int:
        """The slots for tokens in all used blocks, over the groups."""
        return sum(pool.num_blocks - pool.num_free for pool in self._pools) * self.block_size

    def stats(self) -> tuple[KVGroupStats, ...]:
        return tuple(KVGroupStats(pool.window, pool.num_blocks, pool.num_free) for pool in self._pools)

    def num_required_blocks(self, num_tokens: int) -> int:
        """Return how many blocks of the first group a sequence of `num_tokens` tokens needs at once."""
        return self._pools[0].num_required(num_tokens)

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Return whether the KV cache can hold a sequence of `num_tokens` tokens, if it is alone."""
        return all(pool.num_required(num_tokens) <= pool.num_blocks for pool in self._pools)

    def match_prefix(self, sequence: Sequence) -> int:
        """Return the number of blocks that the sequence finds in the prefix cache; allocate none.

        The block of the last token is never included: that token must be computed for its logits.
        """
        if not self._uses_prefix_cache(sequence) or sequence.needs_prompt_logits:
            return 0
        num_blocks = (sequence.num_tokens - 1) // self.block_size
        extend_hashes(sequence, num_blocks, self.block_size)
        while True:
            num_before = num_blocks
            for pool in self._pools:
                num_blocks = pool.num_matching(sequence.block_hashes, num_blocks)
            # What one group lacks makes the prefix shorter, so the others' windows begin earlier.
            if num_blocks == num_before or len(self._pools) == 1:
                return num_blocks

    def is_prefix_pending(self, sequence: Sequence) -> bool:
        """Return whether another sequence is about to compute the first block that this one lacks.

        A sequence of lower priority does not count: it may be delayed for long.
        """
        if sequence.needs_prompt_logits or not self._uses_prefix_cache(sequence):
            return False
        num_matched = self.match_prefix(sequence)
        if num_matched == (sequence.num_tokens - 1) // self.block_size:
            return False
        pending = self._pending.get(sequence.block_hashes[num_matched])
        return pending is not None and pending.priority >= sequence.priority

    def can_allocate(self, sequence: Sequence, num_reserved: int = 0) -> bool:
        """Return whether `allocate` finds enough blocks, with `num_reserved` of each group left free."""
        num_matched = self.match_prefix(sequence)
        return all(
            pool.num_missing(*self._matched(pool, sequence, num_matched), sequence.num_tokens) + num_reserved
            <= pool.num_free
            for pool in self._pools
        )

    def num_victims(self, sequence: Sequence, victims: Iterable[Sequence], num_reserved: int) -> int:
        """Return how many of `victims`, in their order, must be preempted until the sequence fits.

        Returns 0 if preempting all of them is not enough. `num_reserved` blocks of each group must stay free,
        one less for each preempted sequence.
        """
        victims = list(victims)
        num_matched = self.match_prefix(sequence)
        num_victims = 0
        for index, pool in enumerate(self._pools):
            matched, num_passed = self._matched(pool, sequence, num_matched)
            num_missing = pool.num_missing(matched, num_passed, sequence.num_tokens) + num_reserved
            tables = [victim.block_tables[index] for victim in victims]
            found = pool.num_victims(matched, num_missing, tables)
            if found is None:
                return 0
            num_victims = max(num_victims, found)
        return num_victims

    def allocate(self, sequence: Sequence) -> None:
        """Allocate the first blocks of a sequence that has a slot in the batch table; those found in the
        prefix cache count as computed.

        To be called only if `can_allocate` returns True.
        """
        assert not sequence.block_tables, sequence.request_id
        num_matched = self.match_prefix(sequence)
        sequence.block_tables = [
            pool.allocate(*self._matched(pool, sequence, num_matched), sequence.num_tokens)
            for pool in self._pools
        ]
        for table, row in zip(sequence.block_tables, sequence.block_rows, strict=False):
            table.copy_to(row)
        sequence.num_computed_tokens = num_matched * self.block_size
        self._count_slots(sequence)
        if self._uses_prefix_cache(sequence):
            self._add_pending(sequence, num_matched)

    def max_num_tokens(self, sequence: Sequence, num_reserved: int = 0) -> int:
        """Return how many tokens its tables can hold if they grow and leave `num_reserved` blocks free."""
        return self.block_size * min(
            len(table.block_ids) + max(0, pool.num_free - num_reserved)
            for pool, table in zip(self._pools, sequence.block_tables, strict=True)
        )

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks until the tables hold `num_tokens`; return False, with no change, if too few are
        free."""
        num_blocks = self._num_blocks_of(num_tokens)
        for pool, table in zip(self._pools, sequence.block_tables, strict=True):
            if num_blocks - len(table.block_ids) > pool.num_free:
                return False
        for pool, table in zip(self._pools, sequence.block_tables, strict=True):
            pool.extend(table, num_blocks)
        self._count_slots(sequence)
        return True

    def append_blocks(self, sequences: list[Sequence]) -> NDArray[np.int32] | None:
        """Allocate one more block for each sequence; return their ids.

        Return None, with no change, if too few are free or there is more than one group. The same as `grow`
        in a tenth of the time, for steps in which many sequences begin a block. The caller writes the blocks
        to the batch table.
        """
        if len(self._pools) > 1 or self._pools[0].num_free < len(sequences):
            return None
        block_ids = self._pools[0].take(len(sequences))
        for sequence, block_id in zip(sequences, block_ids, strict=True):
            sequence.block_tables[0].block_ids.append(block_id)
        return np.array(block_ids, dtype=np.int32)

    def shrink(self, sequence: Sequence, num_tokens: int) -> None:
        """Free the blocks after those that hold `num_tokens`; they must not have a hash."""
        num_blocks = self._num_blocks_of(num_tokens)
        for pool, table in zip(self._pools, sequence.block_tables, strict=True):
            pool.shrink(table, num_blocks)
        self._count_slots(sequence)

    def advance(self, sequence: Sequence, num_computed_before: int, num_computed: int) -> None:
        """Cache the blocks that became full between these two numbers of computed tokens, and free those that
        its windows have passed.

        Needed only if the tokens computed since then fill a block. To be called after a step: within it,
        its first token still reads the whole window.
        """
        if self._uses_prefix_cache(sequence):
            self._cache_full_blocks(sequence, num_computed_before, num_computed)
        if self.has_windows:
            for pool, table in zip(self._pools, sequence.block_tables, strict=True):
                pool.free_passed(table, num_computed)

    def cache_block(self, sequence: Sequence, place: int, packed: bytes) -> None:
        """Cache block number `place` of a sequence, which became full. The same as `advance` in less time, if
        no group has a window.

        Args:
            packed: its token ids as little-endian int32.
        """
        if not self._uses_prefix_cache(sequence):
            return
        hashes = sequence.block_hashes
        if len(hashes) == place:
            hashes.append(hash_block(hashes[-1] if hashes else hash_salt(sequence.cache_salt), packed))
        else:
            extend_hashes(sequence, place + 1, self.block_size)
        block_hash = hashes[place]
        if self._pending.get(block_hash) is sequence:
            del self._pending[block_hash]
        for pool, table in zip(self._pools, sequence.block_tables, strict=True):
            pool.cache_block(table.block_ids[place], block_hash)

    def free(self, sequence: Sequence) -> None:
        """Free all blocks of the sequence. Computed ones stay in the prefix cache until they are reused."""
        if sequence.block_tables:
            for pool, table in zip(self._pools, sequence.block_tables, strict=True):
                pool.free(table)
            # Blocks that a step in flight computes are still pending.
            num_full = 0 if sequence.is_in_flight else sequence.num_computed_tokens // self.block_size
            self._remove_pending(sequence, sequence.block_hashes[num_full:])
            sequence.num_slots = sequence.num_computed_tokens = 0
        sequence.block_tables = []

    def reset_prefix_cache(self) -> None:
        """Remove all blocks from the prefix cache, because the KV cache lost its contents. None may be in
        use."""
        for pool in self._pools:
            pool.reset()

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert the invariants, given all sequences that have blocks.

        Every block is used or free, reference counts agree with the block tables, every hash leads to its
        block, and no table has lost a block that the next token of its sequence reads.
        """
        sequences = list(sequences)
        for index, pool in enumerate(self._pools):
            pool.check_integrity([sequence.block_tables[index] for sequence in sequences])
            for sequence in sequences:
                num_passed = sequence.block_tables[index].num_passed
                assert num_passed <= pool.num_passed(sequence.num_computed_tokens), sequence.request_id
                num_full = sequence.num_computed_tokens // self.block_size
                if not sequence.is_in_flight:
                    assert num_passed >= pool.num_passed(num_full * self.block_size), sequence.request_id
        for sequence in sequences:
            lengths = [len(table.block_ids) for table in sequence.block_tables]
            assert sequence.num_slots == min(lengths) * self.block_size, sequence.request_id
            for table, row in zip(sequence.block_tables, sequence.block_rows, strict=False):
                first = table.num_passed
                assert row[first : len(table.block_ids)].tolist() == table.used, sequence.request_id
        for block_hash, sequence in self._pending.items():
            num_full = 0 if sequence.is_in_flight else sequence.num_computed_tokens // self.block_size
            assert sequence in sequences, sequence.request_id
            assert block_hash in sequence.block_hashes[num_full:], sequence.request_id

    def _uses_prefix_cache(self, sequence: Sequence) -> bool:
        return self.enable_prefix_caching and sequence.prefix_cache

    def _num_blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _matched(self, pool: BlockPool, sequence: Sequence, num_matched: int) -> tuple[list[bytes], int]:
        """Return the hashes of the blocks that a pool adds to a hit of `num_matched` blocks, and how many of
        those its window has passed."""
        num_passed = pool.num_passed(num_matched * self.block_size)
        return sequence.block_hashes[num_passed:num_matched], num_passed

    def _count_slots(self, sequence: Sequence) -> None:
        sequence.num_slots = self.block_size * min(len(table.block_ids) for table in sequence.block_tables)

    def _cache_full_blocks(self, sequence: Sequence, num_computed_before: int, num_computed: int) -> None:
        start = num_computed_before // self.block_size
        end = num_computed // self.block_size
        extend_hashes(sequence, end, self.block_size)
        hashes = sequence.block_hashes[start:end]
        self._remove_pending(sequence, hashes)
        for pool, table in zip(self._pools, sequence.block_tables, strict=True):
            pool.cache(table.block_ids[start:end], hashes)

    def _add_pending(self, sequence: Sequence, num_cached: int) -> None:
        """Mark the hashes of the full blocks after the first `num_cached` ones as pending."""
        num_full = sequence.num_tokens // self.block_size
        extend_hashes(sequence, num_full, self.block_size)
        pending = self._pending
        for block_hash in sequence.block_hashes[num_cached:num_full]:
            if pending.setdefault(block_hash, sequence).priority < sequence.priority:
                pending[block_hash] = sequence

    def _remove_pending(self, sequence: Sequence, hashes: list[bytes]) -> None:
        pending = self._pending
        for block_hash in hashes:
            if pending.get(block_hash) is sequence:
                del pending[block_hash]
