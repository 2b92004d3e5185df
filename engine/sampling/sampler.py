"""From logits to token ids: what every backend's model shares. Knows no model and no sequence.

1. The logits as the rows' parameters and a grammar change them: logit_edits.py.
2. temperature 0: the first token in the ranking by (logit descending, id ascending). Otherwise one draw with
   the filters: token_draw.py, by one uniform u in [0, 1), a function of (seed, choice, position) alone:
   philox.py.

A row is a function of its own logits, parameters and tokens: what else is in the batch has no influence, and
a sequence goes on anywhere with the same draws. A row whose logits hold a NaN, or nothing but -inf, yields
the id `vocab_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.draw_rows import DrawRows, Rows
from pagefleet.engine.sampling.logit_edits import edited
from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.sampling.token_draw import NUM_CANDIDATES, draw
from pagefleet.engine.sampling.top_tokens import RankedRows, first_highest

NUM_CPU_ROWS = 64
"""Rows that are worked on at once on a CPU: those with rules are copied."""


class SamplingRow(NamedTuple):
    """What decides one row besides its logits."""

    params: SamplingParams
    seed: int
    choice: int
    position: int
    """Index of the token that is drawn, among the sequence's output tokens."""
    rules: LogitRules | None = None
    token_ids: Sequence[int] = ()
    """Prompt and output so far; needed where there are rules."""


class Sampler:
    """See the module's docstring. `num_candidates` may be set for tests; it never changes a token."""

    def __init__(self, num_candidates: Sequence[int] = NUM_CANDIDATES) -> None:
        self._num_candidates = tuple(num_candidates)

    def sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], allowed: NDArray[np.int32] | None = None
    ) -> list[int]:
        """One token id for each row of logits [N, vocab], which stay as they are.

        `allowed` [N, ceil(vocab / 32)], bit t % 32 of word t // 32 for token t, limits the rows before
        anything else does; a row of -1 is free.
        """
        assert len(logits) == len(rows)
        num_rows = NUM_CPU_ROWS if logits.device.type == "cpu" else max(1, len(rows))
        token_ids: list[int] = []
        for start in range(0, len(rows), num_rows):
            some = slice(start, start + num_rows)
            token_ids += self._sample(logits[some], rows[some], None if allowed is None else allowed[some])
        return token_ids

    def _sample(
        self, logits: torch.Tensor, rows: Sequence[SamplingRow], allowed: NDArray[np.int32] | None
    ) -> list[int]:
        is_ruled = np.array([row.rules is not None for row in rows], dtype=np.bool_)
        if allowed is not None:
            is_ruled |= (allowed != -1).any(axis=1)
        ruled = np.flatnonzero(is_ruled)
        changed = None
        if len(ruled):
            some = [rows[index] for index in ruled.tolist()]
            changed = edited(logits, ruled, some, None if allowed is None else allowed[ruled])
        is_greedy = np.array([row.params.temperature == 0 for row in rows], dtype=np.bool_)
        token_ids = np.empty(len(rows), dtype=np.int64)
        if (is_greedy & ~is_ruled).any():
            token_ids[:] = _best(logits)
        if changed is not None and (is_greedy & is_ruled).any():
            token_ids[ruled] = _best(changed)
        drawn = np.flatnonzero(~is_greedy)
        if len(drawn):
            columns = DrawRows.of([rows[index] for index in drawn.tolist()], drawn, logits.shape[-1])
            token_ids[drawn] = draw(RankedRows(logits, ruled, changed), columns, self._num_candidates)
        result: list[int] = token_ids.tolist()
        return result


def _best(logits: torch.Tensor) -> Rows:
    """The first token in each row's ranking."""
    highest, token_ids = first_highest(logits)
    result: Rows = token_ids.masked_fill_(~highest.isfinite(), logits.shape[-1]).cpu().numpy()
    return result
