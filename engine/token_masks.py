"""TokenMasks: which tokens a batch's grammars allow, computed while the device computes the logits.

Packed, one bit a token: bit t % 32 of word t // 32 for token t. Knows sequences; neither tensors nor logits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sequence import Sequence

if TYPE_CHECKING:
    from pagefleet.engine.grammar import Grammar

Packed = NDArray[np.int32]


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

    def start(self, sequences: list[Sequence]) -> Callable[[], Packed] | None:
        """Begin to compute the masks of the sequences' next tokens; None where none has a grammar.

        What is returned waits for them: int32 [sequences, ceil(vocab / 32)], -1 where there is no grammar.
        """
        rows = [(row, each.grammar) for row, each in enumerate(sequences) if each.grammar is not None]
        if not rows:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="pagefleet-masks")
        return self._thread.submit(self._compute, sequences, rows).result

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def _compute(self, sequences: list[Sequence], rows: list[tuple[int, Grammar]]) -> Packed:
        packed = np.full((len(sequences), self._num_words), -1, dtype=np.int32)
        if self._library is None:
            from llguidance import LLExecutor

            self._library = LLExecutor()
        entries = [(grammar.matcher, row) for row, grammar in rows]
        self._library.unsafe_compute_mask_ptr(entries, packed.ctypes.data, packed.shape[1] * 4, len(packed))
        for row, grammar in rows:
            if _must_go_on(sequences[row]) and (others := packed[row] & self._no_end).any():
                # Else it can only end, and does.
                packed[row] = others
            grammar.narrow(packed[row], sequences[row].num_output_tokens)
        return packed


def _must_go_on(sequence: Sequence) -> bool:
    params = sequence.sampling_params
    return params.ignore_eos or sequence.num_output_tokens < params.min_tokens
