"""NgramProposer: what followed the last tokens before, and how likely it does again."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pagefleet.engine.core.ngram_proposer import NgramProposer

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def test_it_goes_on_as_after_the_last_occurrence_of_the_longest_end():
    text = [1, 2, 3, 50, 51, 9, 2, 3, 60, 61, 62, 1, 2, 3]
    assert NgramProposer(len(text)).propose(text, 2).token_ids == [50, 51]
    text = [1, 2, 3, 50, 51, 1, 2, 3, 60, 61, 62, 1, 2, 3]
    assert NgramProposer(len(text)).propose(text, 3).token_ids == [60, 61, 62]


def test_without_a_repetition_there_is_no_guess():
    assert NgramProposer(4).propose([1, 2, 3, 4], 8).token_ids == []


def test_behind_the_end_a_repetition_repeats_itself():
    assert NgramProposer(5).propose([9, 1, 2, 1, 2], 5).token_ids == [1, 2, 1, 2, 1]
    assert NgramProposer(3).propose([5, 5, 5], 3).token_ids == [5, 5, 5]


def test_a_match_is_followed_as_long_as_it_is_right():
    """Given a later occurrence of the last tokens: the longer match goes on all the same."""
    text = [1, 2, 3, 4, 5, 6, 7, 3, 4, 8]
    proposer = NgramProposer(len(text))
    proposer.propose(text, 1)
    text += [1, 2, 3, 4]
    assert proposer.propose(text, 1).token_ids == [5]
    text.append(5)
    assert proposer.propose(text, 1).token_ids == [6]


@given(tokens, tokens, st.integers(1, 6))
def test_a_guess_is_what_came_after_the_same_tokens_before(prompt, output, most):
    text = prompt + output
    drafted, probabilities = NgramProposer(len(prompt)).propose(text, most)
    assert len(drafted) == len(probabilities) <= most
    end = tuple(text[-2:])
    followers = [after for *before, after in zip(text, text[1:], text[2:], strict=False) if (*before,) == end]
    assert len(drafted) == (most if followers else 0)
    assert not drafted or drafted[0] in followers
    assert all(0 <= later <= sooner <= 1 for sooner, later in pairwise(probabilities))


@given(tokens, tokens, st.sets(st.integers(0, 40)))
def test_it_depends_on_the_tokens_alone(prompt, output, asked):
    """Given somebody who asks at any time: who asks once, with all of the log, is told the same."""
    often = NgramProposer(len(prompt))
    for length in sorted(asked & set(range(len(output)))):
        often.propose(prompt + output[:length], 3)
    assert often.propose(prompt + output, 8) == NgramProposer(len(prompt)).propose(prompt + output, 8)


def test_it_learns_how_likely_its_guesses_are():
    """Given an output that repeats its prompt, and one that only seems to, two tokens at a time."""
    prompt = list(range(200))
    copied = prompt + prompt[:100]
    assert NgramProposer(200).propose(copied, 8).probabilities[-1] > 0.9
    drawn = random.Random(1)
    drifted = prompt + [start + each for start in drawn.choices(range(199), k=50) for each in (0, 1)]
    assert NgramProposer(200).propose(drifted, 8).probabilities[0] < 0.05


@given(tokens, tokens, st.lists(st.integers(0, 7), max_size=12))
def test_a_prompt_that_is_read_in_parts_is_known_as_well(prompt, output, parts):
    proposer = NgramProposer(len(prompt))
    for most in parts:
        assert proposer.index_prompt(prompt, most) <= most
    while not proposer.has_indexed_prompt:
        assert proposer.index_prompt(prompt, 5) > 0
    whole = NgramProposer(len(prompt))
    for end in range(len(prompt), len(prompt + output) + 1):
        assert proposer.propose((prompt + output)[:end], 6) == whole.propose((prompt + output)[:end], 6)
