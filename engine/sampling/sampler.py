"""Sampler: from logits to token ids, for every backend's model. Does not know models or sequences.

1. The rows' rules and a grammar's mask change the logits: logits_processor.py.
2. temperature 0: the first token in the ranking by (logit descending, id ascending). Otherwise the filters
   and one draw (token_draw.py), by a uniform number that is a function of (seed, choice, position) alone
   (philox.py).

A row's token is a function of its own logits, parameters and tokens. The rest of the batch does not change
it, so a sequence continues with the same draws in any batch and any process. A row whose logits contain a
NaN, or nothing but -inf, yields the id `vocab_size`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.logits_processor import process_logits
from pagefleet.engine.sampling.sampling_rows import RowIndices, SamplingColumns, SamplingRow
from pagefleet.engine.sampling.token_draw import NUM_CANDIDATES, draw_tokens
from pagefleet.engine.sampling.top_tokens import RankedRows, row_max

__all__ = ["Sampler"]

MAX_CPU_ROWS = 64
"""Rows per pass on a CPU. It bounds the memory of a pass, which copies the rows that have rules."""


class Sampler:
    """See the module's docstring. Tests may set `num_candidates`; it never changes a token."""

    def __init__(self, num_candidates: Sequence[int] = NUM_CANDIDATES) -> None:
        self._num_candidates = tuple(num_candidates)

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], allowed: NDArray[np.int32] | None = None
    ) -> list[int]:
        """Return one token id for each row of `logits` [N, vocab], which are not changed.

        `allowed`, int32 [N, ceil(vocab / 32)], has bit t % 32 of word t // 32 set if the row's grammar
        allows token t. It applies before everything else; a row of -1 allows every token.
        """
        assert len(logits) == len(rows)
        num_rows = MAX_CPU_ROWS if logits.device.type == "cpu" else max(1, len(rows))
        token_ids: list[int] = []
        for start in range(0, len(rows), num_rows):
            some = slice(start, start + num_rows)
            token_ids += self._sample(logits[some], rows[some], None if allowed is None else allowed[some])
        return token_ids

    def _sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], allowed: NDArray[np.int32] | None
    ) -> list[int]:
        is_processed = np.array([row.rules is not None for row in rows], dtype=np.bool_)
        if allowed is not None:
            is_processed |= (allowed != -1).any(axis=1)
        indices = np.flatnonzero(is_processed)
        processed = None
        if len(indices):
            some = [rows[index] for index in indices.tolist()]
            processed = process_logits(logits, indices, some, None if allowed is None else allowed[indices])
        is_greedy = np.array([row.params.temperature == 0 for row in rows], dtype=np.bool_)
        token_ids = np.empty(len(rows), dtype=np.int64)
        if (is_greedy & ~is_processed).any():
            token_ids[:] = _greedy(logits)
        if processed is not None and (is_greedy & is_processed).any():
            token_ids[indices] = _greedy(processed)
        drawn = np.flatnonzero(~is_greedy)
        if len(drawn):
            columns = SamplingColumns.of([rows[index] for index in drawn.tolist()], drawn, logits.shape[-1])
            ranking = RankedRows(logits, indices, processed)
            token_ids[drawn] = draw_tokens(ranking, columns, self._num_candidates)
        result: list[int] = token_ids.tolist()
        return result


def _greedy(logits: torch.Tensor) -> RowIndices:
    """Return the id of each row's largest logit, or the vocabulary size if that logit is not finite."""
    values, token_ids = row_max(logits)
    result: RowIndices = token_ids.masked_fill_(~values.isfinite(), logits.shape[-1]).cpu().numpy()
    return result
