"""NgramProposer: proposes draft tokens, from what followed the same n-gram earlier in the sequence.

This is prompt lookup decoding (Saxena 2023): a summary, an edit or a JSON text repeats long parts of its
input. Does not know models, batches or costs: it returns how probable its drafts are, and Speculation
decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.ngram_index import NgramIndex

__all__ = ["Draft", "NgramProposer"]

Tokens = Sequence[int] | NDArray[np.int32]

_PRIOR_PROBABILITIES: Final = (0.4, 0.6, 0.8, 0.9)
"""The initial probability that the next draft token is right, by `_length_class` of its match."""
_LEARNING_RATE: Final = 0.125
"""The weight of the newest result in that probability."""


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
    because indexing all of it would delay the step. Of a text of 65,536 tokens or more, only the last 32,768
    or more are known (NgramIndex).

    Args:
        max_num_tokens: the largest number of tokens, prompt and output, that the text will have; None if
            unknown.
    """

    def __init__(self, num_prompt_tokens: int, max_num_tokens: int | None = None) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._max_num_tokens = max_num_tokens or sys.maxsize
        self._num_indexed = 0
        # Created with the first tokens: a sequence that waits needs no memory for it.
        self._index: NgramIndex | None = None
        self._match: int | None = None
        self._length = 0
        self._probabilities = list(_PRIOR_PROBABILITIES)

    def propose(self, token_ids: Tokens, max_num_tokens: int) -> Draft:
        """Return a draft of `max_num_tokens` tokens that may follow `token_ids`, or an empty one without a
        match."""
        tokens = _readable(token_ids)
        self._observe(tokens)
        if self._match is None:
            return Draft([], [])
        drafted = list(tokens[self._match : self._match + max_num_tokens])
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
        # Not kept until the next call: the sequence may be preempted and lose this row of the batch table.
        prompt = np.asarray(token_ids[: self._num_prompt_tokens], dtype=np.int32)
        self._made_index().add_all(_readable(token_ids), prompt, begin, end)
        self._num_indexed = end
        return end - begin

    def _made_index(self) -> NgramIndex:
        if self._index is None:
            self._index = NgramIndex(self._max_num_tokens)
        return self._index

    def _observe(self, tokens: Sequence[int]) -> None:
        self.index_prompt(tokens, self._num_prompt_tokens)
        index = self._made_index()
        for end in range(self._num_indexed + 1, len(tokens) + 1):
            if self._match is not None:
                self._compare(tokens[end - 1], tokens[self._match])
            found, length = index.add(tokens, end)
            if found and self._match is None:
                self._match, self._length = found, length
        self._num_indexed = len(tokens)

    def _compare(self, token_id: int, drafted: int) -> None:
        """Learn whether the token that the match proposed is right."""
        assert self._match is not None
        is_right = token_id == drafted
        index = _length_class(self._length)
        self._probabilities[index] += (is_right - self._probabilities[index]) * _LEARNING_RATE
        if is_right:
            self._match += 1
            self._length += 1
        else:
            self._match = None


def _readable(token_ids: Tokens) -> Sequence[int]:
    """Return the tokens in a form from which single ones are read fast, as ints."""
    return token_ids.data if isinstance(token_ids, np.ndarray) else token_ids


def _length_class(length: int) -> int:
    """Return the class of a match's length: 2 to 3, 4 to 7, 8 to 15 tokens, or longer."""
    return min(length.bit_length() - 2, len(_PRIOR_PROBABILITIES) - 1)
