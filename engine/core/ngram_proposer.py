"""NgramProposer: guesses what a sequence goes on with, from what followed its last tokens earlier in it.

Prompt lookup (Saxena 2023): a summary, an edit or a JSON text repeats long parts of what is there already.
Knows nothing of models, batches or costs: it says how likely its guesses are, and others decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

__all__ = ["Draft", "NgramProposer"]

_LENGTHS: Final = (3, 2)
"""Of the n-grams that are looked up; the longest that occurred before counts."""
_PRIOR: Final = (0.4, 0.6, 0.8, 0.9)
"""How likely the next guess is right before anything is known of a sequence, by `_kind` of its match."""
_RATE: Final = 0.125
"""What the newest guess weighs in that."""


class Draft(NamedTuple):
    """Tokens that may follow, in order, and for each how likely it and all before it are right."""

    token_ids: list[int]
    chances: list[float]


class NgramProposer:
    """Follows one sequence.

    tokens   [ ... x y z | A B C ... x y z ]
                         ^ match           ^ the end: A is the guess, and A B C ... the draft

    A match is followed as long as its guesses are right, and gets longer with each; after a wrong one the
    last tokens are looked up again. Every token is compared with its guess, also where no step computed the
    guess: how likely a guess is, by the length of its match, is known without spending anything on it.

    A function of prompt and output alone. A long prompt may be read in parts, by `read_prompt`: an engine's
    thread has no time for all of it at once.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_seen = 0
        self._last: dict[tuple[int, ...], int] = {}
        """Each n-gram's last occurrence: where it ended."""
        self._match: int | None = None
        self._length = 0
        self._chances = list(_PRIOR)

    def propose(self, token_ids: Sequence[int], most: int) -> Draft:
        """What may follow all of the sequence's tokens, `most` tokens at most."""
        self._see(token_ids)
        if self._match is None:
            return Draft([], [])
        drafted = list(token_ids[self._match : self._match + most])
        # Behind its end the text would go on as from the match: it repeats itself.
        period = len(drafted)
        drafted += [drafted[index % period] for index in range(period, most)]
        chances, chance = [], 1.0
        for length in range(self._length, self._length + most):
            chance *= self._chances[_kind(length)]
            chances.append(chance)
        return Draft(drafted, chances)

    @property
    def has_read_prompt(self) -> bool:
        # The last one is looked up like those of the output.
        return self._num_seen >= self._num_prompt_tokens - 1

    def read_prompt(self, token_ids: Sequence[int], most: int) -> int:
        """Take note of the prompt's next tokens, so many at most; returns how many."""
        begin = self._num_seen
        end = min(begin + most, self._num_prompt_tokens - 1)
        if end <= begin:
            return 0
        for length in _LENGTHS:
            first = max(0, begin - length + 1)
            part = token_ids[first:end]
            ngrams = zip(*(part[offset:] for offset in range(length)), strict=False)
            self._last.update(zip(ngrams, count(first + length)))
        self._num_seen = end
        return end - begin

    def _see(self, token_ids: Sequence[int]) -> None:
        self.read_prompt(token_ids, self._num_prompt_tokens)
        for index in range(self._num_seen, len(token_ids)):
            self._compare(token_ids[index], token_ids)
            for length in _LENGTHS:
                if length > index + 1:
                    continue
                # The newest n-gram is looked up before it is known itself.
                ngram = tuple(token_ids[index + 1 - length : index + 1])
                if self._match is None and ngram in self._last:
                    self._match, self._length = self._last[ngram], length
                self._last[ngram] = index + 1
        self._num_seen = len(token_ids)

    def _compare(self, token_id: int, token_ids: Sequence[int]) -> None:
        if self._match is None:
            return
        is_right = token_ids[self._match] == token_id
        kind = _kind(self._length)
        self._chances[kind] += (is_right - self._chances[kind]) * _RATE
        if is_right:
            self._match += 1
            self._length += 1
        else:
            self._match = None


def _kind(length: int) -> int:
    """Of a match: 2 to 3, 4 to 7, 8 to 15 tokens, longer ones."""
    return min(length.bit_length() - 2, len(_PRIOR) - 1)
