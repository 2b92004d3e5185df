"""BlockManager: blocks are neither lost nor owned twice, and a shared block holds what its name says."""

from __future__ import annotations

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.block_hashes import hash_blocks, hash_salt
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4
# A run of one token and a few others: prefixes meet often.
PROMPTS = st.builds(
    lambda num_same, others: [0] * num_same + others,
    st.integers(1, 16),
    st.lists(st.integers(0, 1), max_size=5),
)
# Windows of each KV group, shorter and longer than a block.
WINDOWS = st.sampled_from([(None,), (None,), (6,), (None, 5), (None, 9, 1), (4, 13)])


def make_sequence(token_ids: list[int], cache_salt: str = "") -> Sequence:
    sequence = Sequence(
        request_id="a",
        tokens=np.array(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling_params=SamplingParams(),
        seed=0,
        cache_salt=cache_salt,
    )
    # A table of its own: the tests of the scheduler share one.
    BatchTable(1, 1000, num_groups=3, block_size=BLOCK_SIZE).add(sequence)
    return sequence


def compute_all(manager: BlockManager, sequence: Sequence) -> None:
    before = sequence.num_computed_tokens
    sequence.num_computed_tokens = sequence.num_tokens
    manager.advance(sequence, before, sequence.num_computed_tokens)


def run_through(manager: BlockManager, token_ids: list[int], cache_salt: str = "") -> list[int]:
    """Allocate, compute and free a sequence; returns the blocks that it had."""
    sequence = make_sequence(token_ids, cache_salt)
    manager.allocate(sequence)
    compute_all(manager, sequence)
    block_ids = list(blocks(sequence))
    manager.free(sequence)
    return block_ids


def extend(sequence: Sequence, token_ids: list[int]) -> None:
    """Append tokens as a step would."""
    sequence.tokens[sequence.num_tokens : sequence.num_tokens + len(token_ids)] = token_ids
    sequence._table.num_tokens[sequence.slot] += len(token_ids)


def blocks(sequence: Sequence) -> list[int]:
    """The blocks of the only KV group."""
    return sequence.block_tables[0].block_ids


def test_a_prefix_is_found_again_after_its_sequence_has_gone():
    # Given a sequence of two full blocks and a half that was computed and freed
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    first = run_through(manager, list(range(10)))
    assert manager.num_free_blocks == 8

    # When another one begins the same and goes on differently
    sequence = make_sequence([*range(8), 50, 51, 52])
    manager.allocate(sequence)

    # Then it starts with the same two blocks, counted as computed, and a block of its own
    assert blocks(sequence)[:2] == first[:2]
    assert sequence.num_computed_tokens == 8
    assert len(blocks(sequence)) == 3
    assert manager.num_free_blocks == 5


def test_the_last_token_is_always_left_to_compute():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    run_through(manager, list(range(8)))

    # The whole prompt is cached, but without its last token there would be no logits.
    sequence = make_sequence(list(range(8)))
    manager.allocate(sequence)
    assert sequence.num_computed_tokens == 4
    longer = make_sequence([*range(8), 9])
    manager.allocate(longer)
    assert longer.num_computed_tokens == 8


def test_blocks_are_shared_only_once_they_are_computed():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    sequence = make_sequence(list(range(9)))
    manager.allocate(sequence)
    assert manager.match_prefix(make_sequence(list(range(9)))) == 0

    # One block and a half done: one block to share.
    sequence.num_computed_tokens = 6
    manager.advance(sequence, 0, sequence.num_computed_tokens)
    assert manager.match_prefix(make_sequence(list(range(9)))) == 1


def test_a_salt_keeps_tenants_apart():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    run_through(manager, list(range(9)), cache_salt="tenant a")
    assert manager.match_prefix(make_sequence(list(range(9)), "tenant b")) == 0
    assert manager.match_prefix(make_sequence(list(range(9)), "tenant a")) == 2


def test_a_block_is_known_by_all_that_comes_before_it():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    run_through(manager, [1, 1, 1, 1, 2, 2, 2, 2, 3])
    # The second block has the same tokens as that of the cached sequence, after another first block.
    assert manager.match_prefix(make_sequence([9, 9, 9, 9, 2, 2, 2, 2, 3])) == 0


def test_caching_can_be_switched_off():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE, enable_prefix_caching=False)
    run_through(manager, list(range(9)))
    assert manager.match_prefix(make_sequence(list(range(9)))) == 0
    assert manager.num_cached_blocks == 0


def test_a_tail_is_evicted_before_the_head_it_hangs_on_and_old_before_new():
    # Given an old sequence of 2 blocks and a newer one of 2, in a cache of 4
    manager = BlockManager([KVGroup(None, 4)], BLOCK_SIZE)
    old, new = [1] * 8, [2] * 8
    run_through(manager, old)
    run_through(manager, new)

    def num_matched(token_ids: list[int]) -> int:
        return manager.match_prefix(make_sequence([*token_ids, 0]))

    assert (num_matched(old), num_matched(new)) == (2, 2)
    # When blocks are taken one by one, Then the oldest tail goes first
    taken = make_sequence([3])
    manager.allocate(taken)
    for num_taken, expected in enumerate(((1, 2), (0, 2), (0, 1), (0, 0)), 1):
        assert manager.grow(taken, num_taken * BLOCK_SIZE)
        assert (num_matched(old), num_matched(new)) == expected


def test_a_block_without_a_name_is_reused_before_a_cached_one():
    # Given a cached block, and a half-full one that was freed later
    manager = BlockManager([KVGroup(None, 2)], BLOCK_SIZE)
    run_through(manager, [1, 2, 3, 4])
    (half_full,) = run_through(manager, [5, 6])
    # The half-full one goes first all the same: nobody can ever hit it.
    sequence = make_sequence([77])
    manager.allocate(sequence)
    assert blocks(sequence) == [half_full]
    assert manager.num_cached_blocks == 1


def test_growing_takes_all_blocks_or_none():
    manager = BlockManager([KVGroup(None, 3)], BLOCK_SIZE)
    sequence = make_sequence([1, 2])
    manager.allocate(sequence)
    assert not manager.grow(sequence, 13)
    assert len(blocks(sequence)) == 1
    assert manager.grow(sequence, 12)
    assert len(blocks(sequence)) == 3
    assert manager.num_free_blocks == 0


def test_a_hit_costs_a_block_only_while_nobody_uses_it():
    # Given 2 cached blocks in a cache of 4, all free
    manager = BlockManager([KVGroup(None, 4)], BLOCK_SIZE)
    run_through(manager, list(range(8)))
    # Then a sequence of 3 blocks leaves one free, hits or not.
    sequence = make_sequence(list(range(10)))
    assert manager.can_allocate(sequence, num_reserved=1)
    assert not manager.can_allocate(sequence, num_reserved=2)
    # When another one uses them, and a third block, Then the one that is left suffices.
    manager.allocate(make_sequence(list(range(9))))
    assert manager.num_free_blocks == 1
    assert manager.can_allocate(sequence)
    assert not manager.can_allocate(sequence, num_reserved=1)
    manager.allocate(sequence)
    assert manager.num_free_blocks == 0


def test_the_same_tokens_computed_twice_at_once_are_known_once():
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    twins = [make_sequence(list(range(5))) for _ in range(2)]
    for twin in twins:
        manager.allocate(twin)
    for twin in twins:
        compute_all(manager, twin)
    assert manager.num_cached_blocks == 1
    manager.check_integrity(twins)


def test_hashes_are_the_same_in_every_process():
    program = (
        "import numpy as np; from pagefleet.engine.core.block_hashes import hash_blocks; "
        "print(hash_blocks(b'p', np.array([1, -2, 2**30]), 3)[0].hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {hash_blocks(b"p", np.array([1, -2, 2**30]), 3)[0].hex()}
    # Golden: a changed hash would only lose hits, but should be known.
    assert outputs == {"b76d58c87d93fa996a3d90f05637a249"}


@pytest.mark.parametrize("breakage", ["lost", "twice", "renamed"])
def test_the_integrity_check_finds_a_broken_book(breakage: str):
    manager = BlockManager([KVGroup(None, 8)], BLOCK_SIZE)
    sequence = make_sequence(list(range(9)))
    manager.allocate(sequence)
    compute_all(manager, sequence)
    manager.check_integrity([sequence])
    if breakage == "lost":
        blocks(sequence).pop()
    elif breakage == "twice":
        blocks(sequence)[2] = blocks(sequence)[0]
    else:
        manager._pools[0]._blocks[blocks(sequence)[0]].hash = b"another"
    with pytest.raises(AssertionError):
        manager.check_integrity([sequence])


def windowed(window: int, num_blocks: int, *others: KVGroup) -> BlockManager:
    return BlockManager([*others, KVGroup(window, num_blocks)], BLOCK_SIZE)


def compute(manager: BlockManager, sequence: Sequence, num_tokens: int) -> None:
    before = sequence.num_computed_tokens
    assert manager.grow(sequence, before + num_tokens)
    sequence.num_computed_tokens += num_tokens
    manager.advance(sequence, before, sequence.num_computed_tokens)


def test_a_window_holds_its_blocks_and_the_one_being_filled():
    # Given a window of 8 tokens, and a sequence that is computed token by token
    manager = windowed(8, 20, KVGroup(None, 20))
    sequence = make_sequence(list(range(60)))
    manager.allocate(sequence)
    for num_computed in range(1, 61):
        compute(manager, sequence, 1)
        # Then the tokens that the next one reads are there, and at most a block more on each side
        held = sequence.block_tables[1]
        assert held.num_passed * BLOCK_SIZE <= max(0, num_computed - 7)
        if num_computed > 12:
            assert len(held.used) <= 3
    full, local = manager.stats()
    assert (full.window, full.num_free_blocks) == (None, 5)
    assert (local.window, local.num_free_blocks) == (8, 18)


def test_a_long_sequence_fits_a_pool_that_holds_a_window_and_a_chunk():
    manager = windowed(8, 5)
    sequence = make_sequence(list(range(400)))
    assert manager.num_required_blocks(400) == 4
    assert manager.can_allocate(sequence)
    manager.allocate(sequence)
    while sequence.num_computed_tokens < 400:
        num_tokens = manager.max_num_tokens(sequence) - sequence.num_computed_tokens
        assert num_tokens >= BLOCK_SIZE
        compute(manager, sequence, min(num_tokens, 400 - sequence.num_computed_tokens))


def test_a_hit_needs_only_the_window_before_it():
    # Given a text of 10 blocks whose first blocks its window has passed, and whose blocks were then reused
    manager = windowed(8, 7)
    first = make_sequence(list(range(40)))
    manager.allocate(first)
    for _ in range(10):
        compute(manager, first, BLOCK_SIZE)
    manager.free(first)
    assert manager.num_cached_blocks == 7
    # Then a longer text begins with it, and gets the two blocks that its next token reads
    second = make_sequence([*range(40), 7, 7])
    assert manager.match_prefix(second) == 10
    manager.allocate(second)
    assert second.num_computed_tokens == 40
    assert second.block_tables[0].num_passed == 8
    # And a shorter one that needs what was reused begins from nothing
    assert manager.match_prefix(make_sequence([*range(12), 7, 7])) == 0


def test_a_hit_is_what_all_groups_have():
    # Given a text of which a full group has all blocks, and a group with a window of 8 tokens the last ones
    manager = windowed(8, 5, KVGroup(None, 20))
    text = make_sequence(list(range(40)))
    manager.allocate(text)
    for _ in range(10):
        compute(manager, text, BLOCK_SIZE)
    manager.free(text)
    assert manager.match_prefix(make_sequence([*range(40), 7])) == 10
    # Blocks 5 to 9 are cached: a hit of 7 blocks reads 5 and 6, one of 6 would read 4 too.
    assert manager.match_prefix(make_sequence([*range(28), 7])) == 7
    assert manager.match_prefix(make_sequence([*range(24), 7])) == 0


def test_a_hit_that_one_group_makes_shorter_is_looked_up_again_in_the_others():
    # Given a text of 10 blocks, cached in both groups
    manager = windowed(12, 20, KVGroup(4, 20))
    text = make_sequence(list(range(40)))
    manager.allocate(text)
    for _ in range(10):
        compute(manager, text, BLOCK_SIZE)
    manager.free(text)
    longer = make_sequence([*range(40), 7])
    assert manager.match_prefix(longer) == 10
    # When the second group loses the last block, and the first one the block before it
    short, long = manager._pools
    del long._cached[text.block_hashes[9]], short._cached[text.block_hashes[8]]
    # Then the second group alone would have a hit of 9 blocks, whose last block the first one lacks
    assert manager.match_prefix(longer) == 8


@pytest.mark.parametrize("breakage", ["too early", "too late"])
def test_the_integrity_check_finds_a_window_with_wrong_blocks(breakage: str):
    manager = windowed(8, 8)
    sequence = make_sequence(list(range(30)))
    manager.allocate(sequence)
    for _ in range(5):
        compute(manager, sequence, BLOCK_SIZE)
    manager.check_integrity([sequence])
    if breakage == "too early":
        manager._pools[0].free_passed(sequence.block_tables[0], sequence.num_computed_tokens + BLOCK_SIZE)
    else:
        sequence.num_computed_tokens += 2 * BLOCK_SIZE
        assert manager.grow(sequence, sequence.num_computed_tokens)
    with pytest.raises(AssertionError):
        manager.check_integrity([sequence])


class BlockManagerMachine(RuleBasedStateMachine):
    """Sequences come, grow, are computed in chunks and go, beside a record of what each block really holds.

    The record stands for the K/V: for each group, block and slot, the tokens up to and with the one computed
    there. Each query looks at all tokens of its windows, also those in the middle of a chunk.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sequences: list[Sequence] = []
        self.kv: dict[tuple[int, int, int], tuple[str, tuple[int, ...]]] = {}

    @initialize(windows=WINDOWS, num_more=st.integers(0, 3))
    def start(self, windows: tuple[int | None, ...], num_more: int) -> None:
        self.windows = windows
        # Pools with a window have the smallest size that holds it, or a little more.
        sizes = [9 if window is None else smallest_pool(window) + num_more for window in windows]
        self.manager = BlockManager(
            [KVGroup(window, size) for window, size in zip(windows, sizes, strict=True)], BLOCK_SIZE
        )

    @rule(token_ids=PROMPTS, cache_salt=st.sampled_from(["", "s"]))
    def add(self, token_ids: list[int], cache_salt: str) -> None:
        sequence = make_sequence(token_ids, cache_salt)
        num_free = [group.num_free_blocks for group in self.manager.stats()]
        assert self.manager.match_prefix(sequence) == self.longest_hit(sequence)
        if self.manager.can_allocate(sequence):
            self.manager.allocate(sequence)
            assert sequence.num_computed_tokens < sequence.num_tokens
            self.sequences.append(sequence)
        else:
            num_blocks = -(-len(token_ids) // BLOCK_SIZE)
            assert any(
                (num_blocks if window is None else min(num_blocks, smallest_pool(window))) > free
                for window, free in zip(self.windows, num_free, strict=True)
            )

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), share=st.floats(0, 1))
    def compute(self, data: st.DataObject, share: float) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        before = sequence.num_computed_tokens
        num_tokens = min(sequence.num_tokens, self.manager.max_num_tokens(sequence))
        after = before + round(share * max(0, num_tokens - before))
        assert self.manager.grow(sequence, after)
        for position in range(before, after):
            for slot in self.slots(sequence, position):
                self.kv[slot] = self.prefix(sequence, position)
        for position in range(before, after):
            self.check_reads(sequence, position)
        sequence.num_computed_tokens = after
        self.manager.advance(sequence, before, sequence.num_computed_tokens)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, token_ids: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        num_tokens = sequence.num_tokens + len(token_ids)
        fits = all(
            -(-num_tokens // BLOCK_SIZE) - len(table.block_ids) <= group.num_free_blocks
            for table, group in zip(sequence.block_tables, self.manager.stats(), strict=True)
        )
        assert self.manager.grow(sequence, num_tokens) == fits
        if fits:
            extend(sequence, token_ids)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.manager.free(sequence)
        assert sequence.block_tables == []

    @invariant()
    def books_balance(self) -> None:
        self.manager.check_integrity(self.sequences)

    @invariant()
    def the_next_query_finds_its_windows(self) -> None:
        for sequence in self.sequences:
            self.check_reads(sequence, sequence.num_computed_tokens)

    def check_reads(self, sequence: Sequence, query: int) -> None:
        """A query reads the computed tokens before it, in each group those of its window."""
        for group, (window, table) in enumerate(zip(self.windows, sequence.block_tables, strict=True)):
            for position in range(0 if window is None else max(0, query + 1 - window), query):
                slot = (group, table.block_ids[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert self.kv[slot] == self.prefix(sequence, position)
                assert position // BLOCK_SIZE >= table.num_passed

    def slots(self, sequence: Sequence, position: int) -> list[tuple[int, int, int]]:
        index, offset = divmod(position, BLOCK_SIZE)
        return [(group, table.block_ids[index], offset) for group, table in enumerate(sequence.block_tables)]

    def longest_hit(self, sequence: Sequence) -> int:
        """The largest number of blocks whose next query finds all it reads in every group's prefix cache."""
        longest = (sequence.num_tokens - 1) // BLOCK_SIZE
        hashes: list[bytes] = []
        for start in range(0, longest * BLOCK_SIZE, BLOCK_SIZE):
            parent = hashes[-1] if hashes else hash_salt(sequence.cache_salt)
            block = sequence.token_ids[start : start + BLOCK_SIZE]
            hashes += hash_blocks(parent, block, BLOCK_SIZE)
        for num_blocks in range(longest, 0, -1):
            query = num_blocks * BLOCK_SIZE
            if all(
                hashes[position // BLOCK_SIZE] in pool._cached
                for window, pool in zip(self.windows, self.manager._pools, strict=True)
                for position in range(query)
                if window is None or query - position < window
            ):
                return num_blocks
        return 0

    def teardown(self) -> None:
        for sequence in self.sequences:
            self.manager.free(sequence)
        assert all(group.num_free_blocks == group.num_blocks for group in self.manager.stats())

    @staticmethod
    def prefix(sequence: Sequence, position: int) -> tuple[str, tuple[int, ...]]:
        return sequence.cache_salt, tuple(sequence.token_ids[: position + 1])


def smallest_pool(window: int) -> int:
    return (window - 2) // BLOCK_SIZE + 3


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
