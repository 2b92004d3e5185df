"""From logits to token ids: what every backend's model shares. Knows no model and no sequence.

Semantics of one row, whose tokens are ranked by (logit descending, id ascending):

1. temperature 0: the first token in that ranking. Otherwise p = softmax(logits / temperature), float64.
2. top_k: the first k tokens stay. top_p: of these, the shortest prefix whose share of what top_k left
   reaches top_p. min_p: of these, tokens with p >= min_p * (the largest p).
3. One uniform u in [0, 1), a function of (seed, choice, position) alone: see philox.py.
4. The running sum of what stayed, in order of id, float64: the first token whose sum exceeds
   u * (the whole sum).

A row is a function of its own logits and parameters: what else is in the batch has no influence, and a
sequence goes on anywhere with the same draws. A row whose logits hold a NaN, or nothing but -inf, yields
the id `vocab_size`.

Ranking a whole vocabulary costs more than anything else here and is seldom needed: the cut of top_k and
top_p mostly lies within the first 256. A row is decided from its first n tokens if its cut lies above the
last of them; only rows that are not decided go on to the next larger n. Sums run in the same order over
the same numbers whatever n is, so on a CPU the token is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pagefleet.engine.philox import uniforms
from pagefleet.engine.sampling_params import SamplingParams

NUM_CANDIDATES = (256, 4096)
"""How many tokens are ranked at first, and then; after that, all."""
MAX_ROWS = 32
"""Rows that are sampled at once: bounds the float64 copies of the logits."""


class SamplingRow(NamedTuple):
    """What decides one row besides its logits."""

    params: SamplingParams
    seed: int
    choice: int
    position: int
    """Index of the token that is drawn, among the sequence's output tokens."""


@dataclass(frozen=True)
class _Rows:
    """Parameters of several rows as columns, each [N] on the logits' device."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """The vocabulary's size where it is off."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor

    def __getitem__(self, index: torch.Tensor | slice) -> _Rows:
        columns = (self.temperature, self.top_k, self.top_p, self.min_p, self.uniform)
        return _Rows(*(column[index] for column in columns))


class _Draw(NamedTuple):
    token_ids: torch.Tensor
    """[N], meaningless where not decided."""
    decided: torch.Tensor
    """bool [N]"""


class Sampler:
    """See the module's docstring. `num_candidates` may be set for tests; it never changes a token."""

    def __init__(self, num_candidates: Sequence[int] = NUM_CANDIDATES) -> None:
        self._num_candidates = tuple(num_candidates)

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
        """One token id for each row of logits [N, vocab]."""
        assert len(logits) == len(rows)
        best = logits.max(dim=-1)  # the first of equals
        token_ids = best.indices
        sampled = [index for index, row in enumerate(rows) if row.params.temperature > 0]
        for start in range(0, len(sampled), MAX_ROWS):
            chosen = sampled[start : start + MAX_ROWS]
            index = torch.tensor(chosen, device=logits.device)
            columns = _columns([rows[i] for i in chosen], logits)
            token_ids[index] = self._draw(logits[index], columns)
        token_ids[~best.values.isfinite()] = logits.shape[-1]
        result: list[int] = token_ids.tolist()
        return result

    def _draw(self, logits: torch.Tensor, rows: _Rows) -> torch.Tensor:
        """One id for each row of logits [N, vocab], all with temperature > 0."""
        vocab_size = logits.shape[-1]
        probs = _probabilities(logits, rows.temperature)
        needs_rank = (rows.top_k < vocab_size) | (rows.top_p < 1)
        token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        pending = torch.nonzero(~needs_rank).flatten()
        if len(pending):
            token_ids[pending] = _draw_unranked(probs[pending], rows[pending])
        pending = torch.nonzero(needs_rank).flatten()
        for count in (*self._num_candidates, vocab_size):
            if not len(pending):
                break
            draw = _draw_ranked(logits[pending], probs[pending], rows[pending], min(count, vocab_size))
            token_ids[pending[draw.decided]] = draw.token_ids[draw.decided]
            pending = pending[~draw.decided]
        return token_ids


def _columns(rows: Sequence[SamplingRow], logits: torch.Tensor) -> _Rows:
    device, vocab_size = logits.device, logits.shape[-1]

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    draws = uniforms([row.seed for row in rows], [row.choice for row in rows], [row.position for row in rows])
    return _Rows(
        temperature=column([row.params.temperature for row in rows]),
        top_k=column([min(row.params.top_k or vocab_size, vocab_size) for row in rows], torch.int64),
        top_p=column([row.params.top_p for row in rows]),
        min_p=column([row.params.min_p for row in rows]),
        uniform=torch.from_numpy(draws).to(device),
    )


def _probabilities(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """float64 [N, vocab]. The largest is subtracted first: a tiny temperature must not overflow."""
    wide = logits.double()
    wide -= wide.amax(dim=-1, keepdim=True)
    return torch.softmax(wide.div_(temperature[:, None]), dim=-1)


def _draw_unranked(probs: torch.Tensor, rows: _Rows) -> torch.Tensor:
    """Rows without top_k and top_p: min_p alone needs no ranking."""
    floor = rows.min_p * probs.amax(dim=-1)
    kept = probs.masked_fill(probs < floor[:, None], 0.0)
    return _invert(kept, rows.uniform)


def _draw_ranked(logits: torch.Tensor, probs: torch.Tensor, rows: _Rows, count: int) -> _Draw:
    """Draws from the `count` highest-ranked tokens, as far as these decide the row."""
    vocab_size = logits.shape[-1]
    values, ids = _ranked(logits, count)
    ranked = probs.gather(1, ids)
    ranked = ranked.masked_fill(torch.arange(count, device=ids.device) >= rows.top_k[:, None], 0.0)
    mass = ranked.cumsum(dim=-1)
    # Without top_k the whole is 1, which must not depend on how many tokens are looked at.
    whole = torch.where(rows.top_k < vocab_size, mass[:, -1], 1.0)
    mass_before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
    kept = (mass_before < (rows.top_p * whole)[:, None]) & (ranked >= (rows.min_p * ranked[:, 0])[:, None])
    last = (kept.sum(dim=-1) - 1).clamp(min=0)
    above_the_end = values.gather(1, last[:, None])[:, 0] > values[:, -1]
    decided = ((rows.top_k <= count) & above_the_end) | (count == vocab_size)
    # Back to the order of ids, those that fell out behind all others.
    by_id, order = ids.masked_fill(~kept, vocab_size).sort(dim=-1)
    chosen = _invert(ranked.masked_fill(~kept, 0.0).gather(1, order), rows.uniform)
    return _Draw(by_id.gather(1, chosen[:, None])[:, 0], decided)


class _Ranking(NamedTuple):
    values: torch.Tensor
    ids: torch.Tensor


def _ranked(logits: torch.Tensor, count: int) -> _Ranking:
    """The `count` highest logits and their ids, both [N, count], equals by ascending id.

    Of tokens that equal the last one, topk may leave out any; `_draw_ranked` doesn't decide such a row.
    """
    values, ids = logits.topk(count, dim=-1, sorted=False)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return _Ranking(values, ids.gather(1, order))


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first running sum above uniform * total, for each row of weights [N, M]."""
    sums = weights.cumsum(dim=-1)
    target = uniform[:, None] * sums[:, -1:]
    index = torch.searchsorted(sums, target, right=True)[:, 0]
    return index.clamp_(max=weights.shape[-1] - 1)
