"""SamplingBatch: what decides the tokens of a step's rows besides their logits, as columns.

Does not know tensors or sequences. A table with one row for each running sequence has the same columns:
`SamplingBatch.empty` makes one, `write` fills a row when its sequence comes, and `take` returns the batch of
a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.philox import uniforms
from pagefleet.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pagefleet.engine.sampling.logit_rules import TokenIds

__all__ = ["GrammarMasks", "RowIndices", "RowRules", "SamplingBatch"]

RowIndices = NDArray[np.int64]


class RowRules(NamedTuple):
    """The rules of a row whose parameters change its logits."""

    row: int
    rules: LogitRules
    token_ids: TokenIds
    """Prompt and output so far, as the rules read them."""


class GrammarMasks(NamedTuple):
    """The tokens that grammars allow, for the rows that have a grammar."""

    rows: RowIndices
    """[M]"""
    packed: NDArray[np.int32]
    """[M, ceil(vocab / 32)]: bit t % 32 of word t // 32 is set if the row may have token t."""

    def take(self, index: RowIndices) -> GrammarMasks:
        """Return the masks of these rows, each of which comes once, with their new row numbers."""
        _, new, old = np.intersect1d(index, self.rows, assume_unique=True, return_indices=True)
        return GrammarMasks(new, self.packed[old])


@dataclass(frozen=True)
class SamplingBatch:
    """The parameters of N rows; each column is an array [N]."""

    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    """The vocabulary size, or more, if the filter is off."""
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]
    typical_p: NDArray[np.float64]
    seed: NDArray[np.uint64]
    choice: NDArray[np.int64]
    position: NDArray[np.int64]
    """Index of the drawn token among the sequence's output tokens."""
    rules: Sequence[RowRules] = ()
    """For the rows that have rules."""

    @classmethod
    def empty(cls, num_rows: int) -> SamplingBatch:
        """Return rows that are all greedy."""
        off, zeros = np.ones(num_rows), np.zeros(num_rows, dtype=np.int64)
        return cls(
            temperature=np.zeros(num_rows),
            top_k=np.full(num_rows, np.iinfo(np.int64).max),
            top_p=off,
            min_p=np.zeros(num_rows),
            typical_p=off.copy(),
            seed=zeros.astype(np.uint64),
            choice=zeros,
            position=zeros.copy(),
        )

    def write(self, row: int, params: SamplingParams, seed: int, choice: int = 0, position: int = 0) -> None:
        """Set the columns of one row. `params.seed` and the parameters that rules apply are not read."""
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k or np.iinfo(np.int64).max
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.typical_p[row] = params.typical_p
        self.seed[row] = seed
        self.choice[row] = choice
        self.position[row] = position

    def __len__(self) -> int:
        return len(self.temperature)

    def take(self, index: RowIndices | slice) -> SamplingBatch:
        """Return some rows. If there are rules, `index` has each row at most once."""
        rules: list[RowRules] = []
        if self.rules:
            new_rows = {old: new for new, old in enumerate(np.arange(len(self))[index].tolist())}
            rules = [each._replace(row=new_rows[each.row]) for each in self.rules if each.row in new_rows]
        return SamplingBatch(
            temperature=self.temperature[index],
            top_k=self.top_k[index],
            top_p=self.top_p[index],
            min_p=self.min_p[index],
            typical_p=self.typical_p[index],
            seed=self.seed[index],
            choice=self.choice[index],
            position=self.position[index],
            rules=rules,
        )

    def uniforms(self) -> NDArray[np.float64]:
        """Return float64 [N]: the number in [0, 1) that picks each row's token."""
        return uniforms(self.seed, self.choice, self.position)
