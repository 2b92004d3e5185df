"""Draws one token from each row of logits with a temperature: filters, then one uniform number.

Semantics of one row, whose tokens are ranked by (logit descending, id ascending), and
w = exp((x - max) / temperature):

1. min_p: tokens with w >= min_p (the largest w is 1) stay.
2. top_k: of these, the first k in the ranking. top_p: of these, the shortest prefix of the ranking whose
   share of what 1 and top_k left reaches top_p. (1 and 2 in vLLM's order.)
3. typical_p: with p the shares of what is left and H = -sum(p * log p) its entropy, the tokens ranked by
   (|-log p - H| ascending, id ascending): the shortest prefix whose share reaches typical_p. (Meister et al.
   2022, "Locally typical sampling"; last, as in Hugging Face's generate().)
4. The running sum of what stayed, in order of id: the first token whose sum exceeds u * (the whole sum).

Weights are float32 unless the logits are wider, sums are float64.

Ranking a whole vocabulary costs more than anything else here and is seldom needed: the cut of a filter
mostly lies within the first 256. A row is decided from its first n tokens if its cut lies above the last of
them; only rows that are not decided go on to the next larger n. Sums run in the same order over the same
numbers whatever n is, and each row by itself, so on a CPU the token is the same to the last bit whatever
else is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from pagefleet.engine.row_sums import block_sum, invert, invert_blocks, running_sum

__all__ = ["NUM_CANDIDATES", "DrawRows", "draw"]

NUM_CANDIDATES = (256, 4096)
"""How many tokens are ranked at first, and then; after that, all."""
NUM_WIDE_ROWS = 8
"""Rows of the whole vocabulary that are worked on at once: what they take stays in the processor's cache."""
GROUP = 16
"""Tokens whose maximum is looked at before they are."""
MIN_TEMPERATURE = 1e-30
"""Below, nothing changes, and float32 knows no such numbers."""
FARTHEST = -1e4
"""A logarithm of a weight that is 0, for arithmetic that must not meet an infinity."""


@dataclass(frozen=True)
class DrawRows:
    """Parameters of several rows as columns, each [N] on the logits' device."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """The vocabulary's size where it is off."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    typical_p: torch.Tensor
    uniform: torch.Tensor

    def __getitem__(self, index: torch.Tensor) -> DrawRows:
        return DrawRows(*(getattr(self, field.name)[index] for field in fields(self)))


class _Candidates(NamedTuple):
    """What the filters leave of some rows' highest-ranked tokens, in order of id."""

    log_weights: torch.Tensor
    weights: torch.Tensor
    """float64 [N, M], 0 for what fell out."""
    ids: torch.Tensor
    decided: torch.Tensor
    """bool [N]; the rest is meaningless where not."""


class _Ranking(NamedTuple):
    values: torch.Tensor
    ids: torch.Tensor


def draw(
    logits: torch.Tensor,
    top: torch.Tensor,
    rows: DrawRows,
    num_candidates: Sequence[int] = NUM_CANDIDATES,
) -> torch.Tensor:
    """One id for each row of logits [N, vocab], whose largest are `top` [N]; `num_candidates` changes
    none."""
    vocab_size = logits.shape[-1]
    counts = [min(count, vocab_size) for count in (*num_candidates, vocab_size)]
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    is_free = (rows.top_k == vocab_size) & (rows.top_p == 1) & (rows.min_p == 0)
    for is_typical in (rows.typical_p < 1, rows.typical_p == 1):
        for index in _few_at_a_time(is_free & is_typical):
            token_ids[index] = _draw_from_all(logits[index], top[index], rows[index], counts)
    whole = _whole(logits, top, rows)
    pending = _indices(~is_free)
    for count in counts:
        if not len(pending):
            break
        few = _candidates(_some(logits, pending), top[pending], rows[pending], whole[pending], count)
        decided = few.decided
        if decided.any():
            done = pending[decided]
            token_ids[done] = _choose(_Candidates(*(column[decided] for column in few)), rows[done], counts)
        pending = pending[~decided]
    return token_ids


def _draw_from_all(
    logits: torch.Tensor, top: torch.Tensor, rows: DrawRows, counts: Sequence[int]
) -> torch.Tensor:
    """Rows that only temperature and typical_p have to do with: all of these, or none."""
    log_weights = _log_weights(logits, top, rows)
    if (rows.typical_p == 1).all():
        return invert_blocks(log_weights.exp_(), rows.uniform)
    weights = log_weights.clamp_(min=FARTHEST).exp()
    whole, expected = block_sum(weights), block_sum(weights * log_weights)
    closeness = _closeness(log_weights, expected / whole)
    return invert_blocks(_typical(weights, closeness, rows.typical_p * whole, counts), rows.uniform)


def _whole(logits: torch.Tensor, top: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    """[N]: the weight of all tokens, where top_p is a share of that."""
    whole = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    for index in _few_at_a_time(_is_share_of_all(rows, logits.shape[-1])):
        whole[index] = block_sum(_log_weights(logits[index], top[index], rows[index]).exp_())
    return whole


def _is_share_of_all(rows: DrawRows, vocab_size: int) -> torch.Tensor:
    return (rows.top_k == vocab_size) & (rows.min_p == 0) & (rows.top_p < 1)


def _log_weights(logits: torch.Tensor, top: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    """The largest is subtracted first: a tiny temperature must not overflow."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    temperature = rows.temperature.clamp(min=MIN_TEMPERATURE).to(dtype)
    return logits.to(dtype, copy=True).sub_(top.to(dtype)[:, None]).div_(temperature[:, None])


def _candidates(
    logits: torch.Tensor, top: torch.Tensor, rows: DrawRows, whole: torch.Tensor, count: int
) -> _Candidates:
    """The `count` highest-ranked tokens of each row through min_p, top_k and top_p."""
    vocab_size = logits.shape[-1]
    values, ids = _ranked(logits, count)
    log_weights = _log_weights(values, top, rows)
    weights = log_weights.exp().double()
    is_beyond_k = torch.arange(count, device=ids.device) >= rows.top_k[:, None]
    weights.masked_fill_(is_beyond_k | (weights < rows.min_p[:, None]), 0.0)
    # What top_p is a share of: all that there is, or what top_k and min_p leave, if that is in sight.
    of_all = _is_share_of_all(rows, vocab_size)
    knows_whole = of_all | (rows.top_k <= count) | (weights[:, -1] == 0)
    whole = torch.where(of_all, whole, running_sum(weights)[:, -1])
    is_kept = _is_in_prefix(weights, torch.where(rows.top_p < 1, rows.top_p * whole, torch.inf))
    decided = (knows_whole & _ends_above(is_kept, values)) | (count == vocab_size)
    # Back to the order of ids, those that fell out behind all others.
    ids, order = ids.masked_fill(~is_kept, vocab_size).sort(dim=-1)
    weights = weights.masked_fill_(~is_kept, 0.0).gather(1, order)
    return _Candidates(log_weights.gather(1, order), weights, ids, decided)


def _choose(few: _Candidates, rows: DrawRows, counts: Sequence[int]) -> torch.Tensor:
    weights = few.weights
    typical = _indices(rows.typical_p < 1)
    if len(typical):
        # Sums in the order of ids: how many tokens were looked at doesn't change them.
        chosen, kept = few.log_weights[typical].clamp_(min=FARTHEST), weights[typical]
        whole, expected = running_sum(kept)[:, -1], running_sum(kept * chosen)[:, -1]
        closeness = _closeness(chosen, expected / whole).masked_fill_(kept == 0, -torch.inf)
        weights[typical] = _typical(kept, closeness, rows.typical_p[typical] * whole, counts)
    return few.ids.gather(1, invert(weights, rows.uniform)[:, None])[:, 0]


def _closeness(log_weights: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """-|-log p - H|, which is -|log w - sum(p * log w)|: the logarithm of the whole weight cancels out. In
    place."""
    return log_weights.sub_(expected.to(log_weights.dtype)[:, None]).abs_().neg_()


def _typical(
    weights: torch.Tensor, closeness: torch.Tensor, mass: torch.Tensor, counts: Sequence[int]
) -> torch.Tensor:
    """The weights of the closest tokens, as many as it takes to reach `mass`; 0 for the others."""
    result = torch.zeros_like(weights)
    num_columns = weights.shape[-1]
    pending = torch.arange(len(weights), device=weights.device)
    for count in counts:
        if not len(pending):
            break
        values, columns = _ranked(_some(closeness, pending), min(count, num_columns))
        ranked = weights[pending[:, None], columns]
        is_kept = _is_in_prefix(ranked.double(), mass[pending])
        decided = _ends_above(is_kept, values) | (count >= num_columns)
        kept = ranked.masked_fill_(~is_kept, 0.0)[decided]
        result[pending[decided][:, None], columns[decided]] = kept
        pending = pending[~decided]
    return result


def _ranked(logits: torch.Tensor, count: int) -> _Ranking:
    """The `count` highest logits and their ids, both [N, count], equals by ascending id.

    Of tokens that equal the last one, any may be left out: `_ends_above` doesn't let them count.
    """
    values, ids = _highest(logits, count)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return _Ranking(values, ids.gather(1, order))


def _highest(logits: torch.Tensor, count: int) -> _Ranking:
    """`_ranked` in any order.

    The vocabulary is cut into groups of GROUP tokens. What is higher than the count-th highest maximum of a
    group is in one of the `count` groups with the highest maxima: these alone are searched, at half of the
    time.
    """
    num_groups = logits.shape[-1] // GROUP
    if num_groups < 4 * count:
        return _Ranking(*logits.topk(count, dim=-1, sorted=False))
    # Group g is tokens g, g + num_groups, ...: maxima of neighbours are found together.
    grouped = logits[:, : num_groups * GROUP].reshape(-1, GROUP, num_groups)
    groups = grouped.amax(dim=1).topk(count, dim=-1, sorted=False).indices
    steps = num_groups * torch.arange(GROUP, device=logits.device)
    rest = torch.arange(num_groups * GROUP, logits.shape[-1], device=logits.device)
    searched = (groups[:, None, :] + steps[:, None]).flatten(1)
    searched = torch.cat([searched, rest.expand(len(logits), -1)], dim=-1)
    values, columns = logits.gather(1, searched).topk(count, dim=-1, sorted=False)
    return _Ranking(values, searched.gather(1, columns))


def _is_in_prefix(weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Which tokens of a ranking belong to the shortest prefix that reaches `mass`; never one that weighs
    0."""
    sums = running_sum(weights)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], dim=-1)
    return (before < mass[:, None]) & (weights > 0)


def _ends_above(is_kept: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Whether a prefix of the ranking ends above the last token looked at: what comes after that is out
    too."""
    last = (is_kept.sum(dim=-1) - 1).clamp(min=0)
    return values.gather(1, last[:, None])[:, 0] > values[:, -1]


def _some(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """rows[index], an ascending one, without a copy where that is all of them."""
    return rows if len(index) == len(rows) else rows[index]


def _few_at_a_time(mask: torch.Tensor) -> Iterator[torch.Tensor]:
    """The indices of the rows in `mask`, NUM_WIDE_ROWS at once."""
    indices = _indices(mask)
    for start in range(0, len(indices), NUM_WIDE_ROWS):
        yield indices[start : start + NUM_WIDE_ROWS]


def _indices(mask: torch.Tensor) -> torch.Tensor:
    return torch.nonzero(mask).flatten()
