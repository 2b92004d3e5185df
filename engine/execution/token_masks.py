"""TokenMasks: which tokens the grammars of a batch allow, computed in parallel with the logits.

A mask has one bit per token: bit t % 32 of word t // 32 for token t. Does not know tensors or logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.sequence import Sequence
from pagefleet.engine.sampling.sampling_batch import GrammarMasks

if TYPE_CHECKING:
    from pagefleet.engine.structured.grammar import Grammar

__all__ = ["GrammarRow", "TokenMasks"]

logger = logging.getLogger(__name__)

Packed = NDArray[np.int32]


class GrammarRow(NamedTuple):
    """A sampled sequence, and its row after its last known token among the sampled rows of a step."""

    row: int
    sequence: Sequence
    draft_token_ids: list[int]


class _Place(NamedTuple):
    """A mask: an output position of a sequence with a grammar."""

    row: int
    """Index of the mask."""
    sequence: Sequence
    grammar: Grammar
    """Its state before this position."""
    position: int
    """Index among the output tokens."""
    drafts: list[int]
    """The draft tokens from this position on."""


class TokenMasks:
    """Computes the grammar masks of one model's steps.

    llguidance computes them in its own threads, without the GIL. With an accelerator this takes no extra
    time; on a CPU it shares the cores with the forward pass.
    """

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._num_words = -(-vocab_size // 32)
        ends = np.zeros(self._num_words * 32, dtype=np.uint8)
        ends[list(eos_token_ids)] = 1
        self._no_end = ~np.packbits(ends, bitorder="little").view(np.int32)
        self._thread: ThreadPoolExecutor | None = None
        self._library: Any = None

    def start(self, grammar_rows: Iterable[GrammarRow]) -> Callable[[], GrammarMasks] | None:
        """Start to compute the masks of a step; return a function that waits for them, None without grammars.

        For each of `grammar_rows`, in ascending order of `row`, there is one mask after the last known token
        and one after each draft. Other rows of the step have none.
        """
        places: list[_Place] = []
        rows: list[int] = []
        for row, sequence, drafts in grammar_rows:
            if (grammar := sequence.grammar) is not None:
                places.append(_Place(len(rows), sequence, grammar, sequence.num_output_tokens, drafts))
                rows += range(row, row + 1 + len(drafts))
        if not places:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagefleet-masks")
        return self._thread.submit(self._compute, places, np.array(rows, dtype=np.int64)).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _compute(self, places: list[_Place], rows: NDArray[np.int64]) -> GrammarMasks:
        # A row that cannot follow its draft keeps -1: its token is not used.
        packed = np.full((len(rows), self._num_words), -1, dtype=np.int32)
        if self._library is None:
            from llguidance import LLExecutor

            self._library = LLExecutor()
        # First the rows after the known tokens, then those after the first draft of each sequence, and so on.
        while places:
            self._compute_rows(places, packed)
            places = [place for place in places if self._finish(packed, place)]
            places = [
                next_place for place in places if (next_place := _after_draft(packed, place)) is not None
            ]
        return GrammarMasks(rows, packed)

    def _compute_rows(self, places: list[_Place], packed: Packed) -> None:
        """Compute the masks of `places` together; if that fails, one by one. A row that fails alone allows no
        token."""
        try:
            entries = [(place.grammar.matcher, place.row) for place in places]
            self._library.unsafe_compute_mask_ptr(
                entries, packed.ctypes.data, packed.shape[1] * 4, len(packed)
            )
        # Not `except Exception`: a panic in the library's Rust code is a BaseException.
        except BaseException as error:  # noqa: BLE001
            if len(places) == 1:
                _give_up(packed, places[0], error)
                return
            for place in places:
                self._compute_rows([place], packed)

    def _finish(self, packed: Packed, place: _Place) -> bool:
        """Apply `min_tokens`, `ignore_eos` and the token limit to a row; return whether that succeeded."""
        mask, params = packed[place.row], place.sequence.sampling_params
        must_continue = params.ignore_eos or place.position < params.min_tokens
        if must_continue and (others := mask & self._no_end).any():
            # If only the end of the sequence is allowed, it ends in spite of them.
            mask[:] = others
        try:
            place.grammar.narrow(mask, place.position)
        except BaseException as error:  # noqa: BLE001
            _give_up(packed, place, error)
            return False
        return True


def _give_up(packed: Packed, place: _Place, error: BaseException) -> None:
    """Allow no token in this row and those after its drafts, so that only this sequence ends with an
    error."""
    logger.error("request %s: its grammar failed: %r", place.sequence.request_id, error)
    packed[place.row : place.row + 1 + len(place.drafts)] = 0


def _after_draft(packed: Packed, place: _Place) -> _Place | None:
    """Return the place after the first draft of `place`; None if no token can follow it."""
    if not place.drafts:
        return None
    after = place._replace(row=place.row + 1, position=place.position + 1, drafts=place.drafts[1:])
    try:
        # Use a copy: the draft may be rejected.
        grammar = place.grammar.copy()
        can_follow = grammar.accept(place.drafts[0]) is None and not grammar.is_finished
    except BaseException as error:  # noqa: BLE001
        _give_up(packed, after, error)
        return None
    return after._replace(grammar=grammar) if can_follow else None
