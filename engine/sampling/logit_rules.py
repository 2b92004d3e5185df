"""LogitRules: what one sequence's parameters do to its logits before anything is drawn from them.

Knows no tensors. A function of (parameters, tokens) alone: what is kept here only saves counting again, so a
sequence goes on anywhere, after a preemption or in another process, with the same rules.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from copy import copy

from pagefleet.engine.sampling.sampling_params import SamplingParams

__all__ = ["LogitRules", "TokenCounts", "rules_of"]


class TokenCounts:
    """How often each token occurs in a sequence's output; tokens of the prompt are known with a count of 0.

    They grow with the number of different tokens, at one step of work for each new token.
    """

    def __init__(self) -> None:
        self._index: dict[int, int] = {}
        self.token_ids = array("q")
        """Each token that occurs, once."""
        self.num_outputs = array("q")
        """Beside `token_ids`: how often the output has each."""

    def copy(self) -> TokenCounts:
        """The same counts, that go on by themselves."""
        twin = TokenCounts()
        twin._index = self._index.copy()
        twin.token_ids = self.token_ids[:]
        twin.num_outputs = self.num_outputs[:]
        return twin

    def add(self, token_id: int, *, is_output: bool) -> None:
        index = self._index.setdefault(token_id, len(self._index))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.num_outputs.append(0)
        self.num_outputs[index] += is_output


class LogitRules:
    """The rules of one sequence; made by `rules_of`.

    What its tokens have to do with them is asked for with all of the tokens, each time one or more longer.
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
        # The prompt counts for repetition alone.
        self._num_counted = 0 if params.repetition_penalty != 1 else num_prompt_tokens

    def counts(self, token_ids: Sequence[int]) -> TokenCounts | None:
        """Of all of the sequence's tokens; None where no penalty is asked for."""
        counts = self._counts
        if counts is None:
            return None
        for index in range(self._num_counted, len(token_ids)):
            counts.add(token_ids[index], is_output=index >= self._num_prompt_tokens)
            # Not after all of them: whatever stops this, none is counted twice by the next try.
            self._num_counted = index + 1
        return counts

    def looking_ahead(self, token_ids: Sequence[int]) -> LogitRules:
        """The same rules for a text that goes on from these tokens, but may not stay: what they count is
        forgotten with them."""
        counts = self.counts(token_ids)
        if counts is None:
            return self
        twin = copy(self)
        twin._counts = counts.copy()
        return twin

    def forbidden(self, token_ids: Sequence[int]) -> list[int]:
        """What must not come after `token_ids`: the ends before min_tokens, the last tokens of bad words."""
        forbidden = []
        if len(token_ids) < self._min_num_tokens:
            forbidden += self._end_token_ids
        for word in self._bad_words:
            begin = len(token_ids) - len(word) + 1
            if begin >= self._num_prompt_tokens and tuple(token_ids[begin:]) == word[:-1]:
                forbidden.append(word[-1])
        return forbidden


def rules_of(
    params: SamplingParams,
    num_prompt_tokens: int,
    bad_words: Sequence[Sequence[int]] = (),
    end_token_ids: Sequence[int] = (),
) -> LogitRules | None:
    """The rules that the parameters ask for, None where they ask for none.

    Args:
        bad_words: the tokens of each (bad_words.py).
        end_token_ids: what ends the sequence, and must not before `min_tokens`.
    """
    asks = (
        _has_penalties(params)
        or params.allowed_token_ids is not None
        or params.logit_bias
        or bad_words
        or (params.min_tokens and end_token_ids)
    )
    return LogitRules(params, num_prompt_tokens, bad_words, end_token_ids) if asks else None


def _has_penalties(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
