"""ReferenceSampler: the sampler for every device, in numpy and torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pagefleet.engine.sampling.logits_processor import process_logits
from pagefleet.engine.sampling.sampler import Sampler
from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowIndices, SamplingBatch
from pagefleet.engine.sampling.token_draw import NUM_CANDIDATES, DrawnRows, draw_tokens
from pagefleet.engine.sampling.top_tokens import RankedRows, row_max

__all__ = ["ReferenceSampler"]

MAX_CPU_ROWS = 64
"""Rows per pass on a CPU. It bounds the memory of a pass, which copies the rows that have rules."""


class ReferenceSampler(Sampler):
    """See `Sampler`. Tests may set `num_candidates`; it never changes a token."""

    def __init__(self, num_candidates: Sequence[int] = NUM_CANDIDATES) -> None:
        self._num_candidates = tuple(num_candidates)

    def sample(
        self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None = None
    ) -> RowIndices:
        """See `Sampler.sample`."""
        assert len(logits) == len(batch)
        if logits.device.type != "cpu" or len(batch) <= MAX_CPU_ROWS:
            return self._sample(logits, batch, masks)
        parts = []
        for start in range(0, len(batch), MAX_CPU_ROWS):
            some = np.arange(start, min(start + MAX_CPU_ROWS, len(batch)))
            part = logits[start : start + MAX_CPU_ROWS]
            parts.append(self._sample(part, batch.take(some), None if masks is None else masks.take(some)))
        return np.concatenate(parts)

    def _sample(self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None) -> RowIndices:
        is_processed = np.zeros(len(batch), dtype=np.bool_)
        is_processed[[each.row for each in batch.rules]] = True
        if masks is not None:
            is_processed[masks.rows] = True
        indices = np.flatnonzero(is_processed)
        processed = process_logits(logits, indices, batch.rules, masks) if len(indices) else None
        is_greedy = batch.temperature == 0
        token_ids = np.empty(len(batch), dtype=np.int64)
        if (is_greedy & ~is_processed).any():
            token_ids[:] = _greedy(logits)
        if processed is not None and (is_greedy & is_processed).any():
            token_ids[indices] = _greedy(processed)
        drawn = np.flatnonzero(~is_greedy)
        if len(drawn):
            rows = DrawnRows.of(batch, drawn, logits.shape[-1])
            ranking = RankedRows(logits, indices, processed)
            token_ids[drawn] = draw_tokens(ranking, rows, self._num_candidates)
        return token_ids


def _greedy(logits: torch.Tensor) -> RowIndices:
    """Return the id of each row's largest logit, or the vocabulary size if that logit is not finite."""
    values, token_ids = row_max(logits)
    result: RowIndices = token_ids.masked_fill_(~values.isfinite(), logits.shape[-1]).cpu().numpy()
    return result
