"""StopChecker: what a sequence's newest token means: its text, and whether it was the last.

A function of the sequence's tokens and parameters alone, so that a log that is replayed ends where it ended.
"""

from __future__ import annotations

from typing import NamedTuple

from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.wind_down import STOP_REASON

__all__ = ["Progress", "StopChecker", "failed"]


class Progress(NamedTuple):
    """What the newest token adds to the text, and why it is the last one, if it is."""

    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None


def failed(sentence: str) -> Progress:
    """The sequence can't go on."""
    return Progress("", FinishReason.ERROR, sentence)


class StopChecker:
    """One model's rules for the end of a sequence."""

    def __init__(self, eos_token_ids: tuple[int, ...], max_model_len: int, vocab_size: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def end_token_ids(self, params: SamplingParams, has_grammar: bool = False) -> list[int]:
        """What must not be chosen before `min_tokens`: the ends of sequence, also where `ignore_eos` passes
        over them (as vLLM does), and the request's own stop tokens. A grammar withholds the ends of sequence
        itself, as long as anything else may follow."""
        ends = self._eos_token_ids if not has_grammar else frozenset()
        return sorted(
            token_id for token_id in ends.union(params.stop_token_ids) if token_id < self._vocab_size
        )

    def check(self, sequence: Sequence, num_tokens: int) -> Progress:
        """Take the last of the first `num_tokens`; to be called once for each output token, in order."""
        detokenizer, params = sequence.detokenizer, sequence.sampling_params
        assert detokenizer is not None, sequence.request_id
        token_id = sequence.token_ids[num_tokens - 1]
        num_outputs = num_tokens - sequence.num_prompt_tokens
        grammar = sequence.grammar
        if grammar is not None and (error := grammar.accept(token_id)) is not None:
            return failed(f"The grammar has no place for token {token_id}: {error}.")
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
