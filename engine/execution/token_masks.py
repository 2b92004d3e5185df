"""TokenMasks: which tokens a batch's grammars allow, computed while the device computes the logits.

Packed, one bit a token: bit t % 32 of word t // 32 for token t. Knows sequences; neither tensors nor logits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.sequence import Sequence

if TYPE_CHECKING:
    from pagefleet.engine.structured.grammar import Grammar

logger = logging.getLogger(__name__)

Packed = NDArray[np.int32]


class _Place(NamedTuple):
    """A row of the masks: a token of a sequence that has a grammar."""

    row: int
    sequence: Sequence
    grammar: Grammar
    """As it is before the token."""
    position: int
    drafts: list[int]
    """What is guessed from this token on."""


class TokenMasks:
    """One model's. The library computes without the GIL, in threads of its own: beside an accelerator that
    costs nothing, on a CPU it shares the cores with the forward pass."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._num_words = -(-vocab_size // 32)
        ends = np.zeros(self._num_words * 32, dtype=np.uint8)
        ends[list(eos_token_ids)] = 1
        self._no_end = ~np.packbits(ends, bitorder="little").view(np.int32)
        self._thread: ThreadPoolExecutor | None = None
        self._library: Any = None

    def start(self, scheduled: list[ScheduledSequence]) -> Callable[[], Packed] | None:
        """Begin to compute the masks of what a step samples; None where no sequence has a grammar.

        What is returned waits for them: int32 [rows, ceil(vocab / 32)], -1 where there is no grammar. A row
        for the token behind a sequence's last one, then one for the token behind each of its drafts.
        """
        places: list[_Place] = []
        num_rows = 0
        for entry in scheduled:
            if entry.is_sampled:
                sequence, drafts = entry.sequence, entry.draft_token_ids
                if (grammar := sequence.grammar) is not None:
                    places.append(_Place(num_rows, sequence, grammar, sequence.num_output_tokens, drafts))
                num_rows += 1 + len(drafts)
        if not places:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagefleet-masks")
        return self._thread.submit(self._compute, places, num_rows).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _compute(self, places: list[_Place], num_rows: int) -> Packed:
        packed = np.full((num_rows, self._num_words), -1, dtype=np.int32)
        if self._library is None:
            from llguidance import LLExecutor

            self._library = LLExecutor()
        # Together what is known of all; with drafts, the tokens behind them once more, and so on.
        while places:
            self._compute_rows(places, packed)
            places = [place for place in places if self._finish(packed, place)]
            places = [behind for place in places if (behind := _behind_draft(packed, place)) is not None]
        return packed

    def _compute_rows(self, places: list[_Place], packed: Packed) -> None:
        """All at once; if the library fails on that, one by one, and the row that it fails on alone allows
        nothing."""
        try:
            entries = [(place.grammar.matcher, place.row) for place in places]
            self._library.unsafe_compute_mask_ptr(
                entries, packed.ctypes.data, packed.shape[1] * 4, len(packed)
            )
        # A panic in the library's Rust code is no Exception.
        except BaseException as error:  # noqa: BLE001
            if len(places) == 1:
                _give_up(packed, places[0], error)
                return
            for place in places:
                self._compute_rows([place], packed)

    def _finish(self, packed: Packed, place: _Place) -> bool:
        """Narrow a row; return whether that was possible."""
        mask, params = packed[place.row], place.sequence.sampling_params
        must_go_on = params.ignore_eos or place.position < params.min_tokens
        if must_go_on and (others := mask & self._no_end).any():
            # Else it can only end, and does.
            mask[:] = others
        try:
            place.grammar.narrow(mask, place.position)
        except BaseException as error:  # noqa: BLE001
            _give_up(packed, place, error)
            return False
        return True


def _give_up(packed: Packed, place: _Place, error: BaseException) -> None:
    """Allow nothing here and behind these drafts: the sampler finds no token, the sequence ends alone."""
    logger.error("request %s: its grammar failed: %r", place.sequence.request_id, error)
    packed[place.row : place.row + 1 + len(place.drafts)] = 0


def _behind_draft(packed: Packed, place: _Place) -> _Place | None:
    """The row behind a place's first draft, if anything can follow it."""
    if not place.drafts:
        return None
    behind = place._replace(row=place.row + 1, position=place.position + 1, drafts=place.drafts[1:])
    try:
        # A copy takes the draft: whether it comes true is not known yet.
        grammar = place.grammar.copy()
        can_follow = grammar.accept(place.drafts[0]) is None and not grammar.is_finished
    except BaseException as error:  # noqa: BLE001
        _give_up(packed, behind, error)
        return None
    return behind._replace(grammar=grammar) if can_follow else None
