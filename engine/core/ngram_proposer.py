"""NgramProposer: proposes draft tokens, from what followed the same n-gram earlier in the sequence.

This is prompt lookup decoding (Saxena 2023): a summary, an edit or a JSON text repeats long parts of its
input. Does not know models, batches or costs: it returns how probable its drafts are, and Speculation
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draft", "NgramProposer"]

_NGRAM_LENGTHS: Final = (3, 2)
"""The lengths of the n-grams that are looked up; the longest that occurred before is used."""
_PRIOR_PROBABILITIES: Final = (0.4, 0.6, 0.8, 0.9)
"""The initial probability that the next draft token is right, by `_length_class` of its match."""
_LEARNING_RATE: Final = 0.125
"""The weight of the newest result in that probability."""


Tokens = Sequence[int] | NDArray[np.int32]


class Draft(NamedTuple):
    """Draft tokens in order, and for each the probability that it and all before it are right."""

    token_ids: list[int]
    probabilities: list[float]


class NgramProposer:
    """Proposes drafts for one sequence.

    tokens   [ ... x y z | A B C ... x y z ]
                         ^ match           ^ end: the draft is A B C ...

    A match is kept, and gets longer, as long as the tokens after it are right; after a wrong one the last
    tokens are looked up again. Every token is compared with the one proposed, even if no step computed that:
    so the probabilities, by length of the match, are learned without computing drafts.

    The result depends only on prompt and output. A long prompt is indexed in parts with `index_prompt`,
    because indexing all of it would delay the step.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_indexed = 0
        self._ends: dict[tuple[int, ...], int] = {}
        """The index after the last occurrence of each n-gram."""
        self._match: int | None = None
        self._length = 0
        self._probabilities = list(_PRIOR_PROBABILITIES)

    def propose(self, token_ids: Tokens, max_num_tokens: int) -> Draft:
        """Return a draft of `max_num_tokens` tokens that may follow `token_ids`, or an empty one without a
        match."""
        self._observe(token_ids)
        if self._match is None:
            return Draft([], [])
        drafted = [int(each) for each in token_ids[self._match : self._match + max_num_tokens]]
        # After the end of the text the draft repeats from the match.
        period = len(drafted)
        drafted += [drafted[index % period] for index in range(period, max_num_tokens)]
        probabilities, probability = [], 1.0
        for length in range(self._length, self._length + max_num_tokens):
            probability *= self._probabilities[_length_class(length)]
            probabilities.append(probability)
        return Draft(drafted, probabilities)

    @property
    def has_indexed_prompt(self) -> bool:
        # The last prompt token is looked up like output tokens.
        return self._num_indexed >= self._num_prompt_tokens - 1

    def index_prompt(self, token_ids: Tokens, max_num_tokens: int) -> int:
        """Index the next tokens of the prompt, at most `max_num_tokens`; return how many were indexed."""
        begin = self._num_indexed
        end = min(begin + max_num_tokens, self._num_prompt_tokens - 1)
        if end <= begin:
            return 0
        for length in _NGRAM_LENGTHS:
            first = max(0, begin - length + 1)
            part = [int(each) for each in token_ids[first:end]]
            ngrams = zip(*(part[offset:] for offset in range(length)), strict=False)
            self._ends.update(zip(ngrams, count(first + length)))
        self._num_indexed = end
        return end - begin

    def _observe(self, token_ids: Tokens) -> None:
        self.index_prompt(token_ids, self._num_prompt_tokens)
        for index in range(self._num_indexed, len(token_ids)):
            self._compare(int(token_ids[index]), token_ids)
            for length in _NGRAM_LENGTHS:
                if length > index + 1:
                    continue
                # Look the newest n-gram up before it is indexed itself.
                ngram = tuple(int(each) for each in token_ids[index + 1 - length : index + 1])
                if self._match is None and ngram in self._ends:
                    self._match, self._length = self._ends[ngram], length
                self._ends[ngram] = index + 1
        self._num_indexed = len(token_ids)

    def _compare(self, token_id: int, token_ids: Tokens) -> None:
        if self._match is None:
            return
        is_right = bool(token_ids[self._match] == token_id)
        index = _length_class(self._length)
        self._probabilities[index] += (is_right - self._probabilities[index]) * _LEARNING_RATE
        if is_right:
            self._match += 1
            self._length += 1
        else:
            self._match = None


def _length_class(length: int) -> int:
    """Return the class of a match's length: 2 to 3, 4 to 7, 8 to 15 tokens, or longer."""
    return min(length.bit_length() - 2, len(_PRIOR_PROBABILITIES) - 1)
