"""LogitRules: what one sequence's parameters do to its logits before a token is chosen.

Does not know tensors; logits_processor.py applies the rules. They are a function of (parameters, tokens): the
counts kept here only save counting again, so a sequence continues with the same rules after a preemption or
in another process.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from pagefleet.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    TokenIds: TypeAlias = Sequence[int] | NDArray[np.integer]

__all__ = ["LogitRules", "TokenCounts", "make_logit_rules"]


class TokenCounts:
    """How often each token occurs in a sequence's output. Tokens of the prompt alone have a count of 0.

    The size is the number of distinct tokens; adding a token takes constant time.
    """

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self.token_ids = array("q")
        """Each token that occurs, once."""
        self.output_counts = array("q")
        """How often each of `token_ids` occurs in the output."""

    def copy(self) -> TokenCounts:
        """Return an independent copy."""
        copied = TokenCounts()
        copied._index = self._index.copy()
        copied.token_ids = self.token_ids[:]
        copied.output_counts = self.output_counts[:]
        return copied

    def add(self, token_id: int, *, is_output: bool) -> None:
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.output_counts.append(0)
        self.output_counts[index] += is_output


class LogitRules:
    """The rules of one sequence; `make_logit_rules` creates them.

    The methods take all of the sequence's tokens, prompt and output. From call to call the list only grows.
    """

    def __init__(
        self,
        params: SamplingParams,
        num_prompt_tokens: int,
        bad_words: Sequence[Sequence[int]],
        end_token_ids: Sequence[int],
    ) -> None:
        self.repetition_penalty = params.repetition_penalty
        self.frequency_penalty = params.frequency_penalty
        self.presence_penalty = params.presence_penalty
        allowed = params.allowed_token_ids
        self.allowed = None if allowed is None else array("q", sorted(set(allowed)))
        self.bias_token_ids = array("q", [token_id for token_id, _ in params.logit_bias])
        self.bias = array("d", [bias for _, bias in params.logit_bias])
        self._num_prompt_tokens = num_prompt_tokens
        self._bad_words = [tuple(word) for word in bad_words]
        self._min_num_tokens = num_prompt_tokens + params.min_tokens
        self._end_token_ids = list(end_token_ids)
        self._counts = TokenCounts() if _has_penalties(params) else None
        # Only the repetition penalty counts tokens of the prompt.
        self._num_counted = 0 if params.repetition_penalty != 1 else num_prompt_tokens

    def counts(self, token_ids: TokenIds) -> TokenCounts | None:
        """Return the counts of these tokens, or None if the sequence has no penalties."""
        counts = self._counts
        if counts is None:
            return None
        for index, token_id in enumerate(map(int, token_ids[self._num_counted :]), self._num_counted):
            counts.add(token_id, is_output=index >= self._num_prompt_tokens)
            # After each token, so that a retry after an exception does not count a token twice.
            self._num_counted = index + 1
        return counts

    def fork(self, token_ids: TokenIds) -> LogitRules:
        """Return the same rules for drafts that follow these tokens. Counting drafts does not change `self`,
        because they may be rejected."""
        counts = self.counts(token_ids)
        if counts is None:
            return self
        forked = copy(self)
        forked._counts = counts.copy()
        return forked

    def forbidden(self, token_ids: TokenIds) -> list[int]:
        """Return the ids that must not follow `token_ids`: end tokens before `min_tokens`, and the last token
        of each bad word whose other tokens are there."""
        forbidden = []
        if len(token_ids) < self._min_num_tokens:
            forbidden += self._end_token_ids
        for word in self._bad_words:
            begin = len(token_ids) - len(word) + 1
            if begin >= self._num_prompt_tokens and tuple(token_ids[begin:]) == word[:-1]:
                forbidden.append(word[-1])
        return forbidden


def make_logit_rules(
    params: SamplingParams,
    num_prompt_tokens: int,
    bad_words: Sequence[Sequence[int]] = (),
    end_token_ids: Sequence[int] = (),
) -> LogitRules | None:
    """Return the rules of a sequence, or None if its parameters leave the logits unchanged.

    Args:
        bad_words: the token ids of each bad word (engine/text/bad_words.py).
        end_token_ids: the tokens that end the sequence; forbidden before `min_tokens`.
    """
    has_rules = (
        _has_penalties(params)
        or params.allowed_token_ids is not None
        or params.logit_bias
        or bad_words
        or (params.min_tokens and end_token_ids)
    )
    return LogitRules(params, num_prompt_tokens, bad_words, end_token_ids) if has_rules else None


def _has_penalties(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
