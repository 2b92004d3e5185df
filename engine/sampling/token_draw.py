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
them; only rows that are not decided go on to the next larger n, and then to wide_cut.py, which ranks little
of a whole row. A token is the same to the last bit whatever else is drawn, on a CPU: each row's sums are by
themselves, and how it is decided follows from its own numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.draw_rows import DrawRows, Rows
from pagefleet.engine.sampling.row_sums import block_sum, invert, invert_blocks, running_sum
from pagefleet.engine.sampling.top_tokens import RankedRows
from pagefleet.engine.sampling.wide_cut import keep_prefix

__all__ = ["NUM_CANDIDATES", "draw"]

NUM_CANDIDATES = (256, 2048)
"""How many tokens are ranked at first, and then."""
NUM_WIDE_ROWS = 4
"""Rows of the whole vocabulary that are worked on at once: what they take stays in the processor's cache."""
MIN_TEMPERATURE = 1e-30
"""Below, nothing changes, and float32 knows no such numbers."""
FARTHEST = -1e4
"""A logarithm of a weight that is 0, for arithmetic that must not meet an infinity."""


class _Drawn(NamedTuple):
    """What was drawn from some rows' first tokens, and which of the rows that decides."""

    token_ids: torch.Tensor
    decided: torch.Tensor


def draw(ranking: RankedRows, rows: DrawRows, num_candidates: Sequence[int] = NUM_CANDIDATES) -> Rows:
    """One id for each of the rows, whose logits are in `ranking`; the vocabulary's size for those whose
    largest is no number. `num_candidates` changes none."""
    vocab_size = ranking.vocab_size
    rows = replace(rows, highest=ranking.highest()[rows.place])
    counts = [min(count, vocab_size) for count in num_candidates]
    token_ids = np.full(len(rows), vocab_size)
    is_valid, is_limited = np.isfinite(rows.highest), rows.limits_ranking(vocab_size)
    is_free, is_typical = is_valid & ~is_limited, rows.typical_p < 1
    for index in _few_at_a_time(is_free & ~is_typical):
        token_ids[index] = _draw_free(ranking, rows[index])
    for index in _few_at_a_time(is_free & is_typical):
        token_ids[index] = _draw_typical(ranking, rows[index], counts)
    limited = np.flatnonzero(is_valid & is_limited)
    token_ids[limited] = _draw_limited(ranking, rows[limited], counts)
    return token_ids


def _draw_free(ranking: RankedRows, rows: DrawRows) -> Rows:
    """Rows that nothing but their temperature has to do with."""
    weights = _log_weights(ranking.take(rows.place), rows).exp_()
    return _on_host(invert_blocks(weights, _column(weights, rows.uniform)))


def _draw_typical(ranking: RankedRows, rows: DrawRows, counts: Sequence[int]) -> Rows:
    """Rows that have typical_p and no other filter."""
    log_weights = _log_weights(ranking.take(rows.place), rows).clamp_(min=FARTHEST)
    weights = log_weights.exp()
    whole, expected = block_sum(weights), block_sum(weights * log_weights)
    closeness = _closeness(log_weights, expected / whole)
    mass, uniform = _column(whole, rows.typical_p) * whole, _column(whole, rows.uniform)
    closest = RankedRows(closeness)

    def from_few(some: Rows, count: int) -> _Drawn:
        index = torch.from_numpy(some).to(whole.device)
        found = closest.ranked(some, count)
        ranked = weights[index[:, None], found.ids].double()
        is_kept = _is_in_prefix(ranked, mass[index])
        decided = _ends_above(is_kept, found.values) | (count == ranking.vocab_size)
        kept = found.by_id(ranked.masked_fill_(~is_kept, 0.0))
        return _Drawn(_invert(found.sorted_ids, kept, uniform[index]), decided)

    def from_all(row: int) -> torch.Tensor:
        kept = keep_prefix(closeness[row], weights[row].double(), float(mass[row]))
        return _invert_one(kept, uniform[row])

    return _narrow_then_wide(len(rows), counts, from_few, from_all)


def _draw_limited(ranking: RankedRows, rows: DrawRows, counts: Sequence[int]) -> Rows:
    """Rows that have min_p, top_k or top_p."""
    whole = _whole(ranking, rows)

    def from_few(some: Rows, count: int) -> _Drawn:
        return _draw_from_few(ranking, rows[some], whole[some], count)

    def from_all(row: int) -> torch.Tensor:
        return _draw_from_row(ranking, rows[row : row + 1], whole[row])

    return _narrow_then_wide(len(rows), counts, from_few, from_all)


def _narrow_then_wide(
    num_rows: int,
    counts: Sequence[int],
    from_few: Callable[[Rows, int], _Drawn],
    from_all: Callable[[int], torch.Tensor],
) -> Rows:
    """Each row's token from the smallest of `counts` that decides it, or from all tokens."""
    token_ids, pending = np.empty(num_rows, dtype=np.int64), np.arange(num_rows)
    for count in counts:
        if not len(pending):
            break
        drawn = from_few(pending, count)
        decided = drawn.decided.cpu().numpy()
        token_ids[pending[decided]] = _on_host(drawn.token_ids)[decided]
        pending = pending[~decided]
    for row in pending:
        token_ids[row] = int(from_all(int(row)))
    return token_ids


def _draw_from_few(ranking: RankedRows, rows: DrawRows, whole: NDArray[np.float64], count: int) -> _Drawn:
    """By the `count` highest-ranked tokens of each row."""
    vocab_size = ranking.vocab_size
    found = ranking.ranked(rows.place, count)

    def column(values: NDArray[Any]) -> torch.Tensor:
        return _column(found.ids, values)[:, None]

    log_weights = _log_weights(found.values.clone(), rows)
    weights = log_weights.exp().double()
    is_beyond_k = torch.arange(count, device=weights.device) >= column(rows.top_k)
    weights.masked_fill_(is_beyond_k | (weights < column(rows.min_p)), 0.0)
    # What top_p is a share of: all that there is, or what top_k and min_p leave, if that is in sight.
    of_all = column(rows.shares_all(vocab_size))
    knows_whole = of_all | column(rows.top_k <= count) | (weights[:, -1:] == 0)
    share = torch.where(of_all, column(whole), running_sum(weights)[:, -1:])
    mass = torch.where(column(rows.top_p < 1), column(rows.top_p) * share, torch.inf)
    is_kept = _is_in_prefix(weights, mass[:, 0])
    decided = (knows_whole[:, 0] & _ends_above(is_kept, found.values)) | (count == vocab_size)
    kept = found.by_id(weights.masked_fill_(~is_kept, 0.0))
    typical = np.flatnonzero(rows.typical_p < 1)
    if len(typical):
        index = torch.from_numpy(typical).to(kept.device)
        kept[index] = _typical(kept[index], found.by_id(log_weights)[index], rows.typical_p[typical])
    return _Drawn(_invert(found.sorted_ids, kept, column(rows.uniform)[:, 0]), decided)


def _typical(weights: torch.Tensor, log_weights: torch.Tensor, share: NDArray[np.float64]) -> torch.Tensor:
    """What typical_p leaves of candidates, which are ranked anew. Sums in the order of ids: how many tokens
    were looked at doesn't change them."""
    log_weights.clamp_(min=FARTHEST)
    whole, expected = running_sum(weights)[:, -1], running_sum(weights * log_weights)[:, -1]
    closeness = _closeness(log_weights, expected / whole).masked_fill_(weights == 0, -torch.inf)
    order = closeness.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(1, order)
    ranked.masked_fill_(~_is_in_prefix(ranked, _column(weights, share) * whole), 0.0)
    return torch.empty_like(ranked).scatter_(1, order, ranked)


def _draw_from_row(ranking: RankedRows, rows: DrawRows, whole: float) -> torch.Tensor:
    """One row, by all of its tokens."""
    values = ranking.take(rows.place)[0]
    log_weights = _log_weights(values.clone()[None], rows)[0]
    weights = log_weights.exp().double()
    nat = max(rows.temperature[0], MIN_TEMPERATURE)
    weights.masked_fill_(weights < rows.min_p[0], 0.0)
    if rows.top_k[0] < len(weights):
        weights.mul_(keep_prefix(values, (weights > 0).double(), float(rows.top_k[0]), nat))
    if rows.top_p[0] < 1:
        share = whole if rows.shares_all(len(weights))[0] else float(running_sum(weights[None])[0, -1])
        weights = keep_prefix(values, weights, rows.top_p[0] * share, nat)
    if rows.typical_p[0] < 1:
        log_weights.clamp_(min=FARTHEST)
        total, expected = (running_sum(each[None])[:, -1] for each in (weights, weights * log_weights))
        closeness = _closeness(log_weights[None], expected / total)[0]
        weights = keep_prefix(closeness, weights, rows.typical_p[0] * float(total))
    return _invert_one(weights, _column(weights, rows.uniform)[0])


def _whole(ranking: RankedRows, rows: DrawRows) -> NDArray[np.float64]:
    """[N]: the weight of all tokens, where top_p is a share of that."""
    whole = np.zeros(len(rows))
    for index in _few_at_a_time(rows.shares_all(ranking.vocab_size)):
        some = rows[index]
        whole[index] = block_sum(_log_weights(ranking.take(some.place), some).exp_()).cpu().numpy()
    return whole


def _log_weights(values: torch.Tensor, rows: DrawRows) -> torch.Tensor:
    """In place. The largest is subtracted first: a tiny temperature must not overflow."""
    highest = _column(values, rows.highest).to(values.dtype)
    temperature = _column(values, np.maximum(rows.temperature, MIN_TEMPERATURE)).to(values.dtype)
    return values.sub_(highest[:, None]).div_(temperature[:, None])


def _closeness(log_weights: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """-|-log p - H|, which is -|log w - sum(p * log w)|: the logarithm of the whole weight cancels out. In
    place."""
    return log_weights.sub_(expected.to(log_weights.dtype)[:, None]).abs_().neg_()


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


def _invert(ids: torch.Tensor, weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return ids.gather(1, invert(weights, uniform)[:, None])[:, 0]


def _invert_one(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return invert(weights[None], uniform[None])[0]


def _few_at_a_time(mask: NDArray[np.bool_]) -> Iterator[Rows]:
    """The indices of the rows in `mask`, NUM_WIDE_ROWS at once."""
    indices = np.flatnonzero(mask)
    for start in range(0, len(indices), NUM_WIDE_ROWS):
        yield indices[start : start + NUM_WIDE_ROWS]


def _column(like: torch.Tensor, values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device)


def _on_host(token_ids: torch.Tensor) -> Rows:
    result: Rows = token_ids.cpu().numpy()
    return result
