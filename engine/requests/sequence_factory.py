"""SequenceFactory: makes the sequences of a request, one per choice, replays their logs, hashes their blocks.

Changes nothing but the sequences that it makes, so any thread can call it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pagefleet.engine.core.block_hashes import extend_hashes
from pagefleet.engine.core.ngram_proposer import NgramProposer
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.engine_request import (
    EngineRequest,
    check_logs,
    check_prompt_length,
    check_sampling_token_ids,
    checked_token_ids,
)
from pagefleet.engine.model_info import ModelInfo
from pagefleet.engine.requests.output_processor import progress
from pagefleet.engine.requests.stop_checker import StopChecker, TokenEnd
from pagefleet.engine.sampling.logit_rules import make_logit_rules
from pagefleet.engine.text.bad_words import bad_word_token_ids
from pagefleet.engine.text.detokenizer import IncrementalDetokenizer
from pagefleet.engine.text.tokenizer import Tokenizer

__all__ = ["NewSequence", "PreparedRequest", "SequenceFactory"]


class NewSequence(NamedTuple):
    """A new sequence, and the reason if its log had already ended it."""

    sequence: Sequence
    ended: TokenEnd | None


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRequest:
    """A request that was checked, with its new sequences. It can be added to the engine once."""

    request: EngineRequest
    choices: list[NewSequence]
    """One for each choice, except those whose log is None."""
    max_num_tokens: int
    """How many tokens, prompt and output, a choice may have at most."""

    @property
    def request_id(self) -> str:
        return self.request.request_id


class SequenceFactory:
    """Validates requests to one model and makes their sequences. Thread-safe.

    Args:
        hashes_blocks: whether to hash the blocks of sequences for the prefix cache.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        info: ModelInfo,
        stop_checker: StopChecker,
        *,
        speculates: bool,
        hashes_blocks: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._stop_checker = stop_checker
        self._speculates = speculates
        self._hashes_blocks = hashes_blocks

    def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Return the request with its sequences.

        Each log is appended to its sequence and replayed through stop checker and detokenizer. Full blocks of
        prompt and log are hashed.

        Raises InvalidRequestError with code `empty_prompt`, `context_length`, `token_out_of_vocabulary`,
        `invalid_type` or `invalid_value`.
        """
        params = request.sampling_params
        prompt = checked_token_ids("prompt_token_ids", request.prompt_token_ids, self._info)
        check_logs(request)
        check_prompt_length(len(prompt), self._info)
        check_sampling_token_ids(params, self._info)
        seed = params.seed if params.seed is not None else secrets.randbits(64)
        made: list[NewSequence] = []
        for choice in range(params.n):
            log = request.logs[choice] if choice < len(request.logs) else ()
            if log is not None:
                sequence = self._new(request, list(prompt), seed, choice)
                tokens = checked_token_ids("logs", log, self._info)
                sequence.first_choice = made[0].sequence if made else None
                made.append(NewSequence(sequence, self._replay(sequence, tokens)))
                if self._hashes_blocks and sequence.prefix_cache:
                    block_size = self._info.block_size
                    extend_hashes(sequence, sequence.num_tokens // block_size, block_size)
        return PreparedRequest(request, made, self._max_num_tokens(request, len(prompt)))

    def _max_num_tokens(self, request: EngineRequest, num_prompt_tokens: int) -> int:
        return min(num_prompt_tokens + request.sampling_params.max_tokens, self._info.max_model_len)

    def _new(self, request: EngineRequest, prompt: list[int], seed: int, choice: int) -> Sequence:
        params = request.sampling_params
        bad_words = bad_word_token_ids(params.bad_words, self._tokenizer, self._info.vocab_size)
        ends = self._stop_checker.end_token_ids(params, has_grammar=request.grammar is not None)
        sequence = Sequence(
            request_id=request.request_id,
            tokens=np.array(prompt, dtype=np.int32),
            num_prompt_tokens=len(prompt),
            sampling_params=params,
            seed=seed,
            choice=choice,
            priority=request.priority,
            cache_salt=request.cache_salt,
            prefix_cache=request.prefix_cache,
            detokenizer=IncrementalDetokenizer(self._tokenizer, params, prompt),
            logit_rules=make_logit_rules(params, len(prompt), bad_words, ends),
            grammar=request.grammar.copy() if request.grammar is not None else None,
            proposer=self._proposer(request, len(prompt)),
            # All choices have the same prompt: only the first one computes its logprobs.
            prompt_logprobs=[] if params.prompt_logprobs is not None and choice == 0 else None,
        )
        if sequence.grammar is not None:
            sequence.grammar.limit(self._max_num_tokens(request, len(prompt)) - len(prompt))
        return sequence

    def _proposer(self, request: EngineRequest, num_prompt_tokens: int) -> NgramProposer | None:
        if not self._speculates or not request.sampling_params.speculate:
            return None
        return NgramProposer(num_prompt_tokens, self._max_num_tokens(request, num_prompt_tokens))

    def _replay(self, sequence: Sequence, log: list[int]) -> TokenEnd | None:
        """Append the output tokens of an earlier attempt; return the reason if they end the sequence."""
        for index, token_id in enumerate(log):
            end = self._stop_checker.check(sequence, token_id, sequence.num_prompt_tokens + index + 1)
            found = progress(sequence, token_id, end)
            if found.end is not None:
                sequence.append(log)
                return found.end
        sequence.append(log)
        return None
