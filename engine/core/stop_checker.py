"""StopChecker: the text that a new token adds, and whether it ends its sequence.

A pure function of the sequence's tokens and parameters, so a replayed log ends at the same token.
"""

from __future__ import annotations

from typing import NamedTuple

from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.wind_down import STOP_REASON

__all__ = ["Progress", "StopChecker", "failed"]


class Progress(NamedTuple):
    """The text that a token adds, and the reason if the sequence ends with it."""

    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


def failed(message: str) -> Progress:
    """Return the progress of a sequence that ends with an error."""
    return Progress("", FinishReason.ERROR, message)


class StopChecker:
    """The stop conditions of one model's sequences."""

    def __init__(self, eos_token_ids: tuple[int, ...], max_model_len: int, vocab_size: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def end_token_ids(self, params: SamplingParams, has_grammar: bool = False) -> list[int]:
        """Return the tokens that must not be sampled before `min_tokens`, sorted.

        These are the request's stop tokens and the end-of-sequence tokens, the latter even with `ignore_eos`
        (as in vLLM). A grammar masks end-of-sequence tokens itself as long as other tokens may follow.
        """
        ends = self._eos_token_ids if not has_grammar else frozenset()
        return sorted(
            token_id for token_id in ends.union(params.stop_token_ids) if token_id < self._vocab_size
        )

    def check(self, sequence: Sequence, num_tokens: int) -> Progress:
        """Process the token at index `num_tokens - 1`. To be called once for each output token, in order."""
        detokenizer, params = sequence.detokenizer, sequence.sampling_params
        assert detokenizer is not None, sequence.request_id
        token_id = sequence.token_ids[num_tokens - 1]
        num_outputs = num_tokens - sequence.num_prompt_tokens
        grammar = sequence.grammar
        if grammar is not None and (error := grammar.accept(token_id)) is not None:
            return failed(f"The grammar does not allow the token {token_id} here: {error}.")
        if self._is_stop_token(sequence, token_id, num_outputs):
            text = detokenizer.append(token_id).text if params.include_stop_str_in_output else ""
            is_eos = token_id in self._eos_token_ids and (grammar is not None or not params.ignore_eos)
            return Progress(text + detokenizer.flush(), FinishReason.STOP, None if is_eos else token_id)
        text, stop = detokenizer.append(token_id)
        if stop is not None:
            return Progress(text, FinishReason.STOP, stop)
        if grammar is not None and grammar.is_finished:
            wound_down = grammar.winds_down(num_outputs - 1)
            reason = STOP_REASON if wound_down else None
            return Progress(text + detokenizer.flush(), FinishReason.STOP, reason)
        if num_outputs >= params.max_tokens or num_tokens >= self._max_model_len:
            return Progress(text + detokenizer.flush(), FinishReason.LENGTH, None)
        return Progress(text, None, None)

    def _is_stop_token(self, sequence: Sequence, token_id: int, num_outputs: int) -> bool:
        params = sequence.sampling_params
        if sequence.grammar is not None and sequence.grammar.is_finished and token_id in self._eos_token_ids:
            return True
        if num_outputs < params.min_tokens:
            return False
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        return is_eos or token_id in params.stop_token_ids
