"""StopChecker: whether a new token ends its sequence, by its id or by a count. Stop strings are found later,
in the text (output_processor.py).

A pure function of the sequence's tokens and parameters, so a replayed log ends at the same token.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable, Slots
from pagefleet.engine.core.bookings import Found
from pagefleet.engine.core.scheduler_output import SchedulerOutput
from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.outputs import FinishReason
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.wind_down import STOP_REASON

__all__ = ["End", "StopChecker", "TokenEnd"]

logger = logging.getLogger(__name__)

_NO_TOKEN: Final = (
    "No token could be sampled: the model's logits are not finite numbers, or the request's parameters allow "
    "no token."
)


class TokenEnd(NamedTuple):
    """Why a token ends its sequence."""

    finish_reason: FinishReason
    stop_reason: str | int | None = None
    """As in SequenceOutput."""
    is_stop_token: bool = False
    """Whether the token ends the text, so that it may have no text itself."""


class End(NamedTuple):
    """How many of a sequence's new tokens it keeps, and why it ends after them."""

    num_kept: int
    end: TokenEnd


class StopChecker:
    """The stop conditions of one model's sequences."""

    def __init__(self, eos_token_ids: tuple[int, ...], max_model_len: int, vocab_size: int) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        self._eos = np.array(sorted(self._eos_token_ids), dtype=np.int64)
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

    def find_ends(self, step: SchedulerOutput, found: Found) -> dict[int, End]:
        """Return the sequences of `found` that end with one of their new tokens, by index.

        An error of a grammar ends its sequence.
        """
        counts = found.counts
        owners = (
            np.arange(len(found.indices)) if counts is None else np.repeat(np.arange(len(counts)), counts)
        )
        places = (
            0 if counts is None else np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        )
        num_tokens = found.num_known[owners] + places + 1
        slots, serials = step.slots[found.indices][owners], step.serials[found.indices][owners]
        unclear = self._unclear(step.table, slots, found.token_ids, num_tokens)
        # Those that were preempted meanwhile are no longer in the table.
        unclear |= step.table.serial[slots] != serials
        ends: dict[int, End] = {}
        for place in np.flatnonzero(unclear).tolist():
            owner = int(owners[place])
            if owner in ends:
                continue
            sequence = step.sequences[int(found.indices[owner])]
            end = self._check_safely(sequence, int(found.token_ids[place]), int(num_tokens[place]))
            if end is not None:
                num_new = int(num_tokens[place] - found.num_known[owner])
                is_kept = end.finish_reason is not FinishReason.ERROR
                ends[owner] = End(num_new if is_kept else num_new - 1, end)
        return ends

    def _check_safely(self, sequence: Sequence, token_id: int, num_tokens: int) -> TokenEnd | None:
        try:
            return self.check(sequence, token_id, num_tokens)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # An error of the grammar, which is a library, ends this sequence and not the whole batch. Not
            # `except Exception`: a panic in its Rust code is a BaseException.
            logger.exception("request %s: its token could not be checked", sequence.request_id)
            reason = f"The grammar failed on the generated tokens ({type(error).__name__})."
            return TokenEnd(FinishReason.ERROR, reason)

    def _unclear(
        self, table: BatchTable, slots: Slots, token_ids: NDArray[np.int64], num_tokens: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Return bool [N]: for which tokens `check` must decide whether they end their sequence. For all
        others, it would return None.

        Args:
            num_tokens: [N], the tokens of each sequence with this one.
        """
        is_stop = (table.stop_ids[slots] == token_ids[:, None]).any(axis=1)
        is_eos = np.zeros_like(is_stop)
        for token_id in self._eos.tolist():
            is_eos |= token_ids == token_id
        is_stop |= is_eos & table.takes_eos[slots]
        is_stop &= num_tokens >= table.min_num_tokens[slots]
        is_last = num_tokens >= table.max_num_tokens[slots]
        is_invalid = (token_ids < 0) | (token_ids >= self._vocab_size)
        result: NDArray[np.bool_] = is_stop | is_last | is_invalid | table.is_checked[slots]
        return result

    def check(self, sequence: Sequence, token_id: int, num_tokens: int) -> TokenEnd | None:
        """Process the token at index `num_tokens - 1`; return why it ends the sequence, if it does.

        For a sequence with a grammar to be called once for each output token, in order. A token that cannot
        be used ends the sequence with an error and is not part of it.
        """
        if not 0 <= token_id < self._vocab_size:
            return TokenEnd(FinishReason.ERROR, _NO_TOKEN)
        params, grammar = sequence.sampling_params, sequence.grammar
        num_outputs = num_tokens - sequence.num_prompt_tokens
        if grammar is not None and (error := grammar.accept(token_id)) is not None:
            reason = f"The grammar does not allow the token {token_id} here: {error}."
            return TokenEnd(FinishReason.ERROR, reason)
        if self._is_stop_token(sequence, token_id, num_outputs):
            is_eos = token_id in self._eos_token_ids and (grammar is not None or not params.ignore_eos)
            return TokenEnd(FinishReason.STOP, None if is_eos else token_id, is_stop_token=True)
        if grammar is not None and grammar.is_finished:
            wound_down = grammar.winds_down(num_outputs - 1)
            return TokenEnd(FinishReason.STOP, STOP_REASON if wound_down else None)
        if num_outputs >= params.max_tokens or num_tokens >= self._max_model_len:
            return TokenEnd(FinishReason.LENGTH)
        return None

    def _is_stop_token(self, sequence: Sequence, token_id: int, num_outputs: int) -> bool:
        params = sequence.sampling_params
        if sequence.grammar is not None and sequence.grammar.is_finished and token_id in self._eos_token_ids:
            return True
        if num_outputs < params.min_tokens:
            return False
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        return is_eos or token_id in params.stop_token_ids
