"""NgramProposer: what followed the last tokens before, and how likely it does again."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.engine.core import ngram_index
from pagefleet.engine.core.ngram_index import NgramIndex, num_index_bytes
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


class Dicts:
    """What NgramIndex remembers, in dicts: all of it up to a length, and then the last tokens."""

    def __init__(self, quarter: int | None = None) -> None:
        self.quarter = quarter
        self.ends: dict[tuple[int, ...], int] = {}

    def add(self, tokens: list[int], end: int) -> tuple[int, int]:
        quarter = self.quarter
        known = end - 1
        if quarter is not None and known % quarter == 0 and known >= 2 * quarter:
            self.ends = {ngram: each for ngram, each in self.ends.items() if each > known - quarter}
        found = 0, 2
        for length in (2, 3):
            if end >= length:
                ngram = tuple(tokens[end - length : end])
                if ngram in self.ends:
                    found = self.ends[ngram], length
                self.ends[ngram] = end
        return found


class ProposerWithDicts(NgramProposer):
    """The proposer without a limit of its memory."""

    def __init__(self, num_prompt_tokens: int) -> None:
        super().__init__(num_prompt_tokens)
        self._index = Dicts()

    def index_prompt(self, token_ids: list[int], max_num_tokens: int) -> int:
        while not self.has_indexed_prompt:
            self._num_indexed += 1
            self._index.add(token_ids, self._num_indexed)
        return 0


FORMS: dict[str, Callable] = {"list": list, "array": lambda tokens: np.array(tokens, dtype=np.int32)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("min_batch", [1, 48])
def test_every_draft_is_that_of_unlimited_memory(monkeypatch, form, min_batch):
    """As long as the text has no more tokens than was said: read in parts or at once, as lists or arrays."""
    monkeypatch.setattr(ngram_index, "_MIN_BATCH", min_batch)
    large = st.lists(st.integers(0, 2) | st.integers(2**31 - 3, 2**31 - 1), min_size=1, max_size=150)

    @settings(deadline=None, max_examples=150)
    @given(large, large, st.lists(st.integers(1, 100), max_size=5))
    def check(prompt, output, parts):
        text = prompt + output
        proposer, unlimited = NgramProposer(len(prompt), len(text)), ProposerWithDicts(len(prompt))
        for most in parts:
            proposer.index_prompt(FORMS[form](prompt), most)
        for end in range(len(prompt), len(text) + 1):
            expected = unlimited.propose(text[:end], 6)
            assert proposer.propose(FORMS[form](text[:end]), 6) == expected

    check()


@pytest.mark.parametrize("min_batch", [1, 48])
def test_of_a_longer_text_the_last_tokens_are_known(monkeypatch, min_batch):
    monkeypatch.setattr(ngram_index, "_MIN_BATCH", min_batch)

    @settings(deadline=None, max_examples=150)
    @given(st.lists(st.integers(0, 3), max_size=120), st.lists(st.integers(1, 60), max_size=4))
    def check(tokens, parts):
        index, dicts = NgramIndex(8), Dicts(quarter=4)
        begin = 0
        for part in parts:
            end = min(len(tokens), begin + part)
            index.add_all(tokens, np.array(tokens, dtype=np.int32), begin, end)
            for each in range(begin + 1, end + 1):
                dicts.add(tokens, each)
            begin = end
        for each in range(begin + 1, len(tokens) + 1):
            found, length = index.add(tokens, each)
            assert found == dicts.add(tokens, each)[0]
            if found:
                assert tokens[found - length : found] == tokens[each - length : each]
        assert sum(slot != 0 for slot in index._triples) <= len(index._triples) // 2

    check()


def test_its_memory_is_what_it_says_and_at_most_a_mebibyte():
    for num_tokens in (1, 2, 100, 4096, 65_536, 10**9):
        index = NgramIndex(num_tokens)
        num_bytes = sum(table.itemsize * len(table) for table in (index._pairs, index._triples))
        assert num_bytes == num_index_bytes(num_tokens) <= 2**20
    assert num_index_bytes(4096) == 4096 * 16
    proposer, text = NgramProposer(200_000), list(range(200_000))
    proposer.index_prompt(text, len(text))
    assert len(proposer._index._pairs) == 2**17
    # The last of them are known, the first ones are not.
    assert proposer.propose([*text, 199_000, 199_001], 1).token_ids == [199_002]
    assert proposer.propose([*text, 199_000, 199_001, 5, 6, 7], 1).token_ids == []


def test_a_sequence_that_waits_has_no_memory_for_it():
    assert NgramProposer(1000, 2000)._index is None


def test_an_array_that_is_overwritten_between_two_calls_does_not_matter():
    """A preempted sequence loses its row of the batch table to another one."""
    text = np.array([*range(2000), *range(50), 1500, 1501], dtype=np.int32)
    row, proposer = text.copy(), NgramProposer(len(text))
    proposer.index_prompt(row, 1000)
    row[:] = 7
    proposer.index_prompt(text, len(text))
    assert proposer.propose(text, 3).token_ids == [1502, 1503, 1504]
