"""DrawRows: the rows that draw a token, and their parameters, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sampling.philox import uniforms
from pagefleet.engine.sampling.sampling_params import SamplingParams

__all__ = ["DrawRows", "Rows"]

Rows = NDArray[np.int64]
"""Indices of rows."""


class DrawnRow(Protocol):
    """What must be known of a row here."""

    @property
    def params(self) -> SamplingParams: ...
    @property
    def seed(self) -> int: ...
    @property
    def choice(self) -> int: ...
    @property
    def position(self) -> int: ...


@dataclass(frozen=True)
class DrawRows:
    """Rows and their parameters, as columns on the host: each an array [N]."""

    place: Rows
    """Which of the logits' rows it is."""
    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    """The vocabulary's size where it is off."""
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]
    typical_p: NDArray[np.float64]
    uniform: NDArray[np.float64]
    highest: NDArray[np.float64]
    """The row's largest logit."""

    @classmethod
    def of(cls, rows: Sequence[DrawnRow], places: Rows, vocab_size: int) -> DrawRows:
        """`highest` is not known yet."""
        params = [row.params for row in rows]

        def column(values: Iterable[float]) -> NDArray[np.float64]:
            return np.array(list(values), dtype=np.float64)

        return cls(
            place=places,
            temperature=column(each.temperature for each in params),
            top_k=np.array([min(each.top_k or vocab_size, vocab_size) for each in params], dtype=np.int64),
            top_p=column(each.top_p for each in params),
            min_p=column(each.min_p for each in params),
            typical_p=column(each.typical_p for each in params),
            uniform=uniforms(
                [row.seed for row in rows], [row.choice for row in rows], [row.position for row in rows]
            ),
            highest=np.full(len(rows), np.nan),
        )

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: Rows | slice) -> DrawRows:
        return DrawRows(*(getattr(self, field.name)[index] for field in fields(self)))

    def limits_ranking(self, vocab_size: int) -> NDArray[np.bool_]:
        return (self.top_k < vocab_size) | (self.top_p < 1) | (self.min_p > 0)

    def shares_all(self, vocab_size: int) -> NDArray[np.bool_]:
        """Whether top_p is a share of all that there is."""
        result: NDArray[np.bool_] = (self.top_k == vocab_size) & (self.min_p == 0) & (self.top_p < 1)
        return result
