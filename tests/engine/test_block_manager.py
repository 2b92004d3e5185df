"""BlockManager: blocks are neither lost nor owned twice, and a shared block holds what its name says."""

from __future__ import annotations

import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagefleet.engine.core.block_manager import BlockManager, hash_block
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4
# A run of one token and a few others: prefixes meet often.
PROMPTS = st.builds(
    lambda num_same, others: [0] * num_same + others,
    st.integers(1, 16),
    st.lists(st.integers(0, 1), max_size=5),
)


def make_sequence(token_ids: list[int], cache_salt: str = "") -> Sequence:
    return Sequence(
        request_id="a",
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling_params=SamplingParams(),
        seed=0,
        cache_salt=cache_salt,
    )


def compute_all(manager: BlockManager, sequence: Sequence) -> None:
    before = sequence.num_computed_tokens
    sequence.num_computed_tokens = sequence.num_tokens
    manager.cache_full_blocks(sequence, before)


def run_through(manager: BlockManager, token_ids: list[int], cache_salt: str = "") -> list[int]:
    """Allocate, compute and free a sequence; returns the blocks that it had."""
    sequence = make_sequence(token_ids, cache_salt)
    manager.allocate(sequence)
    compute_all(manager, sequence)
    block_table = list(sequence.block_table)
    manager.free(sequence)
    return block_table


def test_a_prefix_is_found_again_after_its_sequence_has_gone():
    # Given a sequence of two full blocks and a half that was computed and freed
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    first = run_through(manager, list(range(10)))
    assert manager.num_free_blocks == 8

    # When another one begins the same and goes on differently
    sequence = make_sequence([*range(8), 50, 51, 52])
    manager.allocate(sequence)

    # Then it starts with the same two blocks, counted as computed, and a block of its own
    assert sequence.block_table[:2] == first[:2]
    assert sequence.num_computed_tokens == 8
    assert len(sequence.block_table) == 3
    assert manager.num_free_blocks == 5


def test_the_last_token_is_always_left_to_compute():
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    run_through(manager, list(range(8)))

    # The whole prompt is cached, but without its last token there would be no logits.
    sequence = make_sequence(list(range(8)))
    manager.allocate(sequence)
    assert sequence.num_computed_tokens == 4
    longer = make_sequence([*range(8), 9])
    manager.allocate(longer)
    assert longer.num_computed_tokens == 8


def test_blocks_are_shared_only_once_they_are_computed():
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    sequence = make_sequence(list(range(9)))
    manager.allocate(sequence)
    assert manager.match_prefix(make_sequence(list(range(9)))) == []

    # One block and a half done: one block to share.
    sequence.num_computed_tokens = 6
    manager.cache_full_blocks(sequence, 0)
    assert manager.match_prefix(make_sequence(list(range(9)))) == sequence.block_table[:1]


def test_a_salt_keeps_tenants_apart():
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    run_through(manager, list(range(9)), cache_salt="tenant a")
    assert manager.match_prefix(make_sequence(list(range(9)), "tenant b")) == []
    assert len(manager.match_prefix(make_sequence(list(range(9)), "tenant a"))) == 2


def test_a_block_is_known_by_all_that_comes_before_it():
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    run_through(manager, [1, 1, 1, 1, 2, 2, 2, 2, 3])
    # The second block has the same tokens as that of the cached sequence, after another first block.
    assert manager.match_prefix(make_sequence([9, 9, 9, 9, 2, 2, 2, 2, 3])) == []


def test_caching_can_be_switched_off():
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE, enable_prefix_caching=False)
    run_through(manager, list(range(9)))
    assert manager.match_prefix(make_sequence(list(range(9)))) == []
    assert manager.num_cached_blocks == 0


def test_a_tail_is_evicted_before_the_head_it_hangs_on_and_old_before_new():
    # Given an old sequence of 2 blocks and a newer one of 2, in a cache of 4
    manager = BlockManager(num_blocks=4, block_size=BLOCK_SIZE)
    old, new = [1] * 8, [2] * 8
    run_through(manager, old)
    run_through(manager, new)

    def num_matched(token_ids: list[int]) -> int:
        return len(manager.match_prefix(make_sequence([*token_ids, 0])))

    assert (num_matched(old), num_matched(new)) == (2, 2)
    # When blocks are taken one by one, Then the oldest tail goes first
    taken = make_sequence([3])
    for expected in ((1, 2), (0, 2), (0, 1), (0, 0)):
        assert manager.grow(taken, (len(taken.block_table) + 1) * BLOCK_SIZE)
        assert (num_matched(old), num_matched(new)) == expected


def test_a_block_without_a_name_is_reused_before_a_cached_one():
    # Given a cached block, and a half-full one that was freed later
    manager = BlockManager(num_blocks=2, block_size=BLOCK_SIZE)
    run_through(manager, [1, 2, 3, 4])
    (half_full,) = run_through(manager, [5, 6])
    # The half-full one goes first all the same: nobody can ever hit it.
    sequence = make_sequence([77])
    manager.allocate(sequence)
    assert sequence.block_table == [half_full]
    assert manager.num_cached_blocks == 1


def test_growing_takes_all_blocks_or_none():
    manager = BlockManager(num_blocks=3, block_size=BLOCK_SIZE)
    sequence = make_sequence([1, 2])
    manager.allocate(sequence)
    assert not manager.grow(sequence, 13)
    assert len(sequence.block_table) == 1
    assert manager.grow(sequence, 12)
    assert len(sequence.block_table) == 3
    assert manager.num_free_blocks == 0


def test_a_hit_costs_a_block_only_while_nobody_uses_it():
    # Given 2 cached blocks in a cache of 4, all free
    manager = BlockManager(num_blocks=4, block_size=BLOCK_SIZE)
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
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    twins = [make_sequence(list(range(5))) for _ in range(2)]
    for twin in twins:
        manager.allocate(twin)
    for twin in twins:
        compute_all(manager, twin)
    assert manager.num_cached_blocks == 1
    manager.check_integrity(twins)


def test_hashes_are_the_same_in_every_process():
    program = (
        "from pagefleet.engine.core.block_manager import hash_block; "
        "print(hash_block(b'p', [1, -2, 2**40]).hex())"
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
    assert outputs == {hash_block(b"p", [1, -2, 2**40]).hex()}
    # Golden: a changed hash would only lose hits, but should be known.
    assert outputs == {"a18dd4383e7fff4e824207b6d89e7f17"}


@pytest.mark.parametrize("breakage", ["lost", "twice", "renamed"])
def test_the_integrity_check_finds_a_broken_book(breakage: str):
    manager = BlockManager(num_blocks=8, block_size=BLOCK_SIZE)
    sequence = make_sequence(list(range(9)))
    manager.allocate(sequence)
    compute_all(manager, sequence)
    manager.check_integrity([sequence])
    if breakage == "lost":
        sequence.block_table.pop()
    elif breakage == "twice":
        sequence.block_table[2] = sequence.block_table[0]
    else:
        manager._blocks[sequence.block_table[0]].hash = b"another"
    with pytest.raises(AssertionError):
        manager.check_integrity([sequence])


class BlockManagerMachine(RuleBasedStateMachine):
    """Sequences come, grow, are computed in chunks and go, beside a record of what each block really holds.

    The record stands for the K/V: for each block and slot, the tokens up to and with the one computed there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(num_blocks=9, block_size=BLOCK_SIZE)
        self.sequences: list[Sequence] = []
        self.kv: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}

    @rule(token_ids=PROMPTS, cache_salt=st.sampled_from(["", "s"]))
    def add(self, token_ids: list[int], cache_salt: str) -> None:
        sequence = make_sequence(token_ids, cache_salt)
        num_free = self.manager.num_free_blocks
        if self.manager.can_allocate(sequence):
            self.manager.allocate(sequence)
            assert sequence.num_computed_tokens < sequence.num_tokens
            self.sequences.append(sequence)
        else:
            assert self.manager.num_required_blocks(len(token_ids)) > num_free

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), share=st.floats(0, 1))
    def compute(self, data: st.DataObject, share: float) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        before = sequence.num_computed_tokens
        after = before + round(share * (sequence.num_tokens - before))
        for position in range(before, after):
            block_id = sequence.block_table[position // BLOCK_SIZE]
            self.kv[block_id, position % BLOCK_SIZE] = self.prefix(sequence, position)
        sequence.num_computed_tokens = after
        self.manager.cache_full_blocks(sequence, before)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), token_ids=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, token_ids: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        num_tokens = sequence.num_tokens + len(token_ids)
        num_missing = self.manager.num_required_blocks(num_tokens) - len(sequence.block_table)
        fits = num_missing <= self.manager.num_free_blocks
        assert self.manager.grow(sequence, num_tokens) == fits
        if fits:
            sequence.token_ids.extend(token_ids)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.manager.free(sequence)
        assert sequence.block_table == []

    @invariant()
    def books_balance(self) -> None:
        self.manager.check_integrity(self.sequences)

    @invariant()
    def computed_tokens_are_where_the_block_table_says(self) -> None:
        for sequence in self.sequences:
            for position in range(sequence.num_computed_tokens):
                slot = (sequence.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert self.kv[slot] == self.prefix(sequence, position)

    def teardown(self) -> None:
        for sequence in self.sequences:
            self.manager.free(sequence)
        assert self.manager.num_free_blocks == self.manager.num_blocks

    @staticmethod
    def prefix(sequence: Sequence, position: int) -> tuple[str, tuple[int, ...]]:
        return sequence.cache_salt, tuple(sequence.token_ids[: position + 1])


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
