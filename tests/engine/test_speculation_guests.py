"""Drafts are guests of a step: they take what is left, and leave with it."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import numpy as np
import pytest
from numpy.typing import NDArray

from pagefleet.engine.core import speculation
from pagefleet.engine.core.block_manager import BlockManager
from pagefleet.engine.core.ngram_proposer import Draft, NgramProposer
from pagefleet.engine.core.scheduler import Scheduler
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.model_info import KVGroup
from pagefleet.engine.sampling.sampling_params import SamplingParams

BLOCK_SIZE = 4


class Sure(NgramProposer):
    """Is sure of as many sevens as it may guess."""

    def propose(self, token_ids: Tokens[int], most: int) -> Draft:
        return Draft([7] * most, [1.0] * most)


def make_scheduler(*, num_blocks: int = 20, token_budget: int = 32, max_num_seqs: int = 4) -> Scheduler:
    manager = BlockManager([KVGroup(None, num_blocks)], BLOCK_SIZE)
    return Scheduler(manager, max_num_seqs, token_budget, max_num_drafts=6)


def add(scheduler: Scheduler, prompt: list[int], *, max_tokens: int = 40, is_sure: bool = True) -> Sequence:
    sequence = Sequence(
        request_id=str(prompt),
        tokens=np.array(prompt),
        num_prompt_tokens=len(prompt),
        sampling_params=SamplingParams(max_tokens=max_tokens),
        seed=0,
        proposer=Sure(len(prompt)) if is_sure else None,
    )
    scheduler.add(sequence, len(prompt) + max_tokens)
    return sequence


def rows_that_find(output: SchedulerOutput, found: tuple[list[int], ...]) -> NDArray[np.int64]:
    """Return sampled rows that give each sequence these tokens, followed by wrong ones."""
    rows: list[int] = []
    for entry, tokens in zip(output.scheduled, found, strict=True):
        if entry.is_sampled:
            rows += [*tokens, *[-1] * (1 + len(entry.draft_token_ids) - len(tokens))]
    return np.array(rows, dtype=np.int64)


def step(scheduler: Scheduler, *found: list[int]) -> list[int]:
    """One step in which this is found; the number of drafts of each sequence."""
    output = scheduler.schedule()
    num_drafts = [len(entry.draft_token_ids) for entry in output.scheduled]
    scheduler.bookings.book(output)
    scheduler.bookings.commit(output, rows_that_find(output, found))
    scheduler.check_integrity()
    return num_drafts


def test_what_comes_true_stays_and_the_rest_is_computed_again():
    scheduler = make_scheduler()
    sequence = add(scheduler, [1, 2, 3])
    assert step(scheduler, [7, 7, 8]) == [6]
    assert sequence.token_ids.tolist() == [1, 2, 3, 7, 7, 8]
    assert sequence.num_computed_tokens == 5
    assert (scheduler.bookings.num_draft_tokens, scheduler.bookings.num_accepted_tokens) == (6, 2)
    # The blocks of three drafts that were wrong are free again.
    assert len(sequence.block_tables[0].block_ids) == 2
    assert scheduler.block_manager.num_free_blocks == 18

    entry = scheduler.schedule().scheduled[0]
    assert (entry.num_new_tokens, entry.draft_token_ids) == (7, [7] * 6)


def test_only_tokens_that_came_true_are_known_to_the_prefix_cache():
    """Given drafts that fill two blocks of which one token came true: the first block is known, as it is."""
    scheduler = make_scheduler()
    sequence = add(scheduler, [1, 2, 3])
    step(scheduler, [7, 8])
    assert scheduler.block_manager.num_cached_blocks == 1
    other = add(scheduler, [1, 2, 3, 7, 7, 7, 7, 7, 7], is_sure=False)
    assert scheduler.block_manager.match_prefix(other) == 1
    assert sequence.num_computed_tokens == 4


def test_they_take_what_the_others_leave_of_the_budget():
    scheduler = make_scheduler(token_budget=9)
    add(scheduler, [1, 2, 3])
    add(scheduler, [2, 2, 3])
    assert step(scheduler, [8], [8]) == [3, 0]
    add(scheduler, [3, 2, 3, 4, 5, 6])
    # A newcomer goes first.
    assert step(scheduler, [8], [8], [8]) == [1, 0, 0]


def test_they_take_only_blocks_that_are_free():
    """Given one free block behind two sequences: the first gets drafts for its own and that one."""
    scheduler = make_scheduler(num_blocks=5, max_num_seqs=16)
    for token_id in (1, 2):
        add(scheduler, [token_id, 2, 3, 4, 5, 6], max_tokens=6)
    assert step(scheduler, [8], [8]) == [5, 2]
    assert scheduler.block_manager.num_free_blocks == 1
    assert step(scheduler, [8], [8]) == [4, 1]
    assert step(scheduler, [8], [8]) == [3, 0]
    assert scheduler.num_preemptions == 0


def test_they_never_go_beyond_the_end():
    """Given room for three more tokens: two drafts, and the one that is found behind them."""
    scheduler = make_scheduler()
    sequence = add(scheduler, [1, 2, 3], max_tokens=3)
    assert step(scheduler, [7, 8]) == [2]
    assert step(scheduler, [7]) == [0]
    assert sequence.num_tokens == sequence.max_num_tokens


def test_a_long_prompt_is_not_guessed_at_before_its_end():
    scheduler = make_scheduler(token_budget=8)
    add(scheduler, list(range(12)))
    assert step(scheduler, []) == [0]
    assert step(scheduler, [7]) == [4]


def test_who_is_preempted_takes_no_drafts_along():
    scheduler = make_scheduler()
    sequence = add(scheduler, [1, 2, 3])
    scheduler.schedule()
    scheduler.preempt_all()
    scheduler.check_integrity()
    assert scheduler.block_manager.num_free_blocks == 20
    assert step(scheduler, [7] * 7) == [6]
    assert sequence.num_computed_tokens == 9


def test_a_step_that_is_replaced_leaves_no_blocks_of_drafts():
    scheduler = make_scheduler(token_budget=9)
    first, second = add(scheduler, [1, 2, 3]), add(scheduler, [2, 2, 3])
    step(scheduler, [8], [8])
    output = scheduler.schedule()
    assert len(first.block_tables[0].block_ids) == 3
    # When a newcomer takes the budget
    scheduler.abort(second)
    add(scheduler, list(range(8)))
    output = scheduler.reschedule(output)
    assert [entry.num_new_tokens for entry in output.scheduled] == [1, 8]
    assert len(first.block_tables[0].block_ids) == 1
    scheduler.bookings.book(output)
    scheduler.bookings.commit(output, rows_that_find(output, ([7], [7])))
    # When a sequence with drafts has ended
    output = scheduler.schedule()
    assert output.scheduled[0].draft_token_ids
    scheduler.abort(first)
    scheduler.reschedule(output)
    scheduler.check_integrity()


@pytest.mark.parametrize(("num_others", "num_drafts"), [(0, 6), (60, 0)])
def test_a_full_batch_has_no_use_for_an_uncertain_guess(num_others, num_drafts):
    """Given guesses of which every second one is right."""

    class Unsure(NgramProposer):
        def propose(self, token_ids: Tokens[int], most: int) -> Draft:
            return Draft([7] * most, [0.5] * most)

    scheduler = make_scheduler(num_blocks=200, token_budget=512, max_num_seqs=64)
    add(scheduler, [1]).proposer = Unsure(1)
    for token_id in range(num_others):
        add(scheduler, [token_id + 2], is_sure=False)
    assert step(scheduler, *[[8]] * (num_others + 1)) == [num_drafts] + [0] * num_others


def test_a_step_samples_no_more_than_the_memory_for_logits_is_known_for():
    scheduler = make_scheduler(max_num_seqs=8, token_budget=64, num_blocks=60)
    for first in range(5):
        add(scheduler, [first, 2, 3])
    assert step(scheduler, *([[8]] * 5)) == [3, 0, 0, 0, 0]


def test_a_long_prompt_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(speculation, "_MAX_INDEXED_TOKENS", 3)
    scheduler = make_scheduler()
    add(scheduler, [1, 2, 3, 4, 5, 6, 7, 8])
    assert [step(scheduler, [9]) for _ in range(2)] == [[0], [0]]
    assert step(scheduler, [9]) == [6]


def test_wrong_guesses_use_a_grammar_up_and_are_given_up():
    class AnyText:
        def num_valid(self, token_ids):
            return len(token_ids) - 1

    scheduler = make_scheduler(token_budget=200, num_blocks=200)
    sequence = add(scheduler, [1, 2, 3], max_tokens=300)
    sequence.grammar = AnyText()
    drafts = [step(scheduler, [9])[0] for _ in range(40)]
    assert drafts[0] == 5
    assert drafts[-1] == 0
    # Those that the grammar has no place for are wrong too.
    assert 64 <= sequence.num_wrong_drafts < 64 + 6
