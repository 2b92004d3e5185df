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

from pagefleet.engine.logit_edits import edited
from pagefleet.engine.logit_rules import LogitRules
from pagefleet.engine.philox import uniforms
from pagefleet.engine.sampling_params import SamplingParams
from pagefleet.engine.token_draw import NUM_CANDIDATES, DrawRows, draw

NUM_CPU_ROWS = 32
"""Rows that are worked on at once on a CPU. All of 64 rows at once take twice the time: what is allocated
for them is new memory from the system in every step, and more than the processor's cache holds."""


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
        logits = edited(logits, rows, allowed)
        best = logits.max(dim=-1)  # the first of equals
        token_ids = best.indices
        sampled = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        if sampled:
            index = torch.tensor(sampled, device=logits.device)
            columns = _columns([rows[i] for i in sampled], logits)
            drawn = logits if len(sampled) == len(rows) else logits[index]
            token_ids[index] = draw(drawn, best.values[index], columns, self._num_candidates)
        token_ids[~best.values.isfinite()] = logits.shape[-1]
        result: list[int] = token_ids.tolist()
        return result


def _columns(rows: Sequence[SamplingRow], logits: torch.Tensor) -> DrawRows:
    device, vocab_size = logits.device, logits.shape[-1]

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    draws = uniforms([row.seed for row in rows], [row.choice for row in rows], [row.position for row in rows])
    return DrawRows(
        temperature=column([row.params.temperature for row in rows]),
        top_k=column([min(row.params.top_k or vocab_size, vocab_size) for row in rows], torch.int64),
        top_p=column([row.params.top_p for row in rows]),
        min_p=column([row.params.min_p for row in rows]),
        typical_p=column([row.params.typical_p for row in rows]),
        uniform=torch.from_numpy(draws).to(device),
    )
