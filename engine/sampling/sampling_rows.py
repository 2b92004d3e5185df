"""SamplingRow: what decides one row besides its logits. SamplingColumns: the same for all rows that draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.philox import uniforms
from pagefleet.engine.sampling.sampling_params import SamplingParams

__all__ = ["RowIndices", "SamplingColumns", "SamplingRow"]

RowIndices = NDArray[np.int64]


class SamplingRow(NamedTuple):
    """What decides the token of one row besides its logits."""

    params: SamplingParams
    seed: int
    choice: int
    position: int
    """Index of the drawn token among the sequence's output tokens."""
    rules: LogitRules | None = None
    token_ids: Sequence[int] = ()
    """Prompt and output so far; required if there are rules."""


@dataclass(frozen=True)
class SamplingColumns:
    """The parameters of the rows that draw, on the host: each field is an array [N]."""

    index: RowIndices
    """The row's index in the logits."""
    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    """The vocabulary size if the filter is off."""
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]
    typical_p: NDArray[np.float64]
    uniform: NDArray[np.float64]
    """The number in [0, 1) that picks the token."""
    max_logit: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], indices: RowIndices, vocab_size: int) -> SamplingColumns:
        """Return the columns of `rows`, which are the rows `indices` of the logits. `max_logit` is NaN until
        it is replaced."""
        params = [row.params for row in rows]

        def column(values: Iterable[float]) -> NDArray[np.float64]:
            return np.array(list(values), dtype=np.float64)

        return cls(
            index=indices,
            temperature=column(each.temperature for each in params),
            top_k=np.array([min(each.top_k or vocab_size, vocab_size) for each in params], dtype=np.int64),
            top_p=column(each.top_p for each in params),
            min_p=column(each.min_p for each in params),
            typical_p=column(each.typical_p for each in params),
            uniform=uniforms(
                [row.seed for row in rows], [row.choice for row in rows], [row.position for row in rows]
            ),
            max_logit=np.full(len(rows), np.nan),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: RowIndices | slice) -> SamplingColumns:
        return SamplingColumns(*(getattr(self, field.name)[index] for field in fields(self)))

    def has_rank_filter(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return bool [N]: whether top_k, top_p or min_p cuts the ranking by logit."""
        return (self.top_k < vocab_size) | (self.top_p < 1) | (self.min_p > 0)

    def has_top_p_alone(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return bool [N]: whether top_p is a share of the whole vocabulary's weight, because neither top_k
        nor min_p removes anything first."""
        result: NDArray[np.bool_] = (self.top_k == vocab_size) & (self.min_p == 0) & (self.top_p < 1)
        return result
