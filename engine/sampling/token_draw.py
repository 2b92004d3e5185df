"""draw_tokens: draws one token from each row of logits with a temperature: the filters, then one draw.

For one row, with its tokens ranked by (logit descending, id ascending) and weights
w = exp((x - max) / temperature):

1. min_p keeps the tokens with w >= min_p (the largest w is 1).
2. Of these, top_k keeps the first k in the ranking. Of these, top_p keeps the shortest prefix of the ranking
   whose share of the remaining weight reaches top_p. (1 and 2 are in vLLM's order.)
3. typical_p: p is a remaining token's share of the remaining weight, H = -sum(p * log p) their entropy. With
   the tokens ranked by (|-log p - H| ascending, id ascending), it keeps the shortest prefix whose share
   reaches typical_p. (Meister et al. 2022, "Locally typical sampling"; it comes last, as in Hugging Face's
   generate().)
4. The remaining weights are added up in the order of the ids. The result is the first token whose running sum
   exceeds u * total, with u the row's uniform number.

Weights are float32 unless the logits are wider; sums are float64.

Ranking a whole vocabulary would cost more than everything else here and is seldom needed: a filter usually
keeps fewer than 256 tokens. The n highest-ranked tokens (the candidates) decide a row if all that it keeps
ranks above the last of them. Rows that are not decided are tried with the next larger n, and finally with
`keep_top_mass`, which looks at the whole row but sorts little of it. On a CPU a token is the same to the last
bit in every batch: each row is summed separately, and its own numbers determine how it is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.row_sums import block_sum, inverse_cdf, inverse_cdf_in_blocks, running_sum
from pagefleet.engine.sampling.sampling_batch import RowIndices, SamplingBatch
from pagefleet.engine.sampling.top_tokens import RankedRows, keep_top_mass

__all__ = ["NUM_CANDIDATES", "DrawnRows", "draw_tokens"]

NUM_CANDIDATES = (256, 2048)
"""How many tokens of a row are ranked at first, and how many if these do not decide it."""
MAX_FULL_ROWS = 4
"""Rows of the whole vocabulary per pass, so that their buffers stay in the processor's cache."""
MIN_TEMPERATURE = 1e-30
"""Smaller temperatures draw the same tokens, and float32 cannot represent them."""
MIN_LOG_WEIGHT = -1e4
"""Replaces the logarithm of a weight of 0 in sums, which must not contain an infinity."""


@dataclass(frozen=True)
class DrawnRows:
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
    def of(cls, batch: SamplingBatch, index: RowIndices, vocab_size: int) -> DrawnRows:
        """Return these rows of a batch. `max_logit` is NaN until it is replaced."""
        rows = batch.take(index)
        return cls(
            index=index,
            temperature=rows.temperature,
            top_k=np.minimum(rows.top_k, vocab_size),
            top_p=rows.top_p,
            min_p=rows.min_p,
            typical_p=rows.typical_p,
            uniform=rows.uniforms(),
            max_logit=np.full(len(rows), np.nan),
        )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: RowIndices | slice) -> DrawnRows:
        return DrawnRows(*(getattr(self, field.name)[index] for field in fields(self)))

    def has_rank_filter(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return bool [N]: whether top_k, top_p or min_p cuts the ranking by logit."""
        return (self.top_k < vocab_size) | (self.top_p < 1) | (self.min_p > 0)

    def has_top_p_alone(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return bool [N]: whether top_p is a share of the whole vocabulary's weight, because neither top_k
        nor min_p removes anything first."""
        result: NDArray[np.bool_] = (self.top_k == vocab_size) & (self.min_p == 0) & (self.top_p < 1)
        return result


class _Drawn(NamedTuple):
    """The tokens drawn from the candidates of some rows: `token_ids` int64 [N], `decided` bool [N]."""

    token_ids: torch.Tensor
    decided: torch.Tensor
    """Whether the candidates were enough; otherwise the token is not valid."""


def draw_tokens(
    ranking: RankedRows, rows: DrawnRows, num_candidates: Sequence[int] = NUM_CANDIDATES
) -> RowIndices:
    """Return int64 [N]: a token id for each row, or the vocabulary size if its largest logit is not finite.

    `ranking` has the logits of the whole batch. `num_candidates` does not change the result.
    """
    vocab_size = ranking.vocab_size
    rows = replace(rows, max_logit=ranking.max()[rows.index])
    counts = [min(count, vocab_size) for count in num_candidates]
    token_ids = np.full(len(rows), vocab_size)
    is_valid, is_filtered = np.isfinite(rows.max_logit), rows.has_rank_filter(vocab_size)
    is_unfiltered, is_typical = is_valid & ~is_filtered, rows.typical_p < 1
    for index in _chunks(is_unfiltered & ~is_typical):
        token_ids[index] = _draw_unfiltered(ranking, rows[index])
    for index in _chunks(is_unfiltered & is_typical):
        token_ids[index] = _draw_typical(ranking, rows[index], counts)
    filtered = np.flatnonzero(is_valid & is_filtered)
    token_ids[filtered] = _draw_filtered(ranking, rows[filtered], counts)
    return token_ids


def _draw_unfiltered(ranking: RankedRows, rows: DrawnRows) -> RowIndices:
    """Rows that have a temperature and no filter."""
    weights = _log_weights(ranking.take(rows.index), rows).exp_()
    return _on_host(inverse_cdf_in_blocks(weights, _tensor(weights, rows.uniform)))


def _draw_typical(ranking: RankedRows, rows: DrawnRows, counts: Sequence[int]) -> RowIndices:
    """Rows that have typical_p and no other filter."""
    log_weights = _log_weights(ranking.take(rows.index), rows).clamp_(min=MIN_LOG_WEIGHT)
    weights = log_weights.exp()
    total, expected = block_sum(weights), block_sum(weights * log_weights)
    closeness = _closeness(log_weights, expected / total)
    mass, uniform = _tensor(total, rows.typical_p) * total, _tensor(total, rows.uniform)
    closest = RankedRows(closeness)

    def from_candidates(some: RowIndices, count: int) -> _Drawn:
        index = torch.from_numpy(some).to(total.device)
        top = closest.top(some, count)
        ranked = weights[index[:, None], top.ids].double()
        is_kept = _is_in_prefix(ranked, mass[index])
        decided = _ends_above_last(is_kept, top.values) | (count == ranking.vocab_size)
        kept = top.by_id(ranked.masked_fill_(~is_kept, 0.0))
        return _Drawn(_pick(top.sorted_ids, kept, uniform[index]), decided)

    def from_all(row: int) -> torch.Tensor:
        kept = keep_top_mass(closeness[row], weights[row].double(), float(mass[row]))
        return _pick_one(kept, uniform[row])

    return _draw_in_rounds(len(rows), counts, from_candidates, from_all)


def _draw_filtered(ranking: RankedRows, rows: DrawnRows, counts: Sequence[int]) -> RowIndices:
    """Rows that have min_p, top_k or top_p."""
    totals = _totals(ranking, rows)

    def from_candidates(some: RowIndices, count: int) -> _Drawn:
        return _draw_from_candidates(ranking, rows[some], totals[some], count)

    def from_all(row: int) -> torch.Tensor:
        return _draw_from_row(ranking, rows[row : row + 1], totals[row])

    return _draw_in_rounds(len(rows), counts, from_candidates, from_all)


def _draw_in_rounds(
    num_rows: int,
    counts: Sequence[int],
    from_candidates: Callable[[RowIndices, int], _Drawn],
    from_all: Callable[[int], torch.Tensor],
) -> RowIndices:
    """Return each row's token, drawn from the smallest candidate count that decides it or from all tokens."""
    token_ids, pending = np.empty(num_rows, dtype=np.int64), np.arange(num_rows)
    for count in counts:
        if not len(pending):
            break
        drawn = from_candidates(pending, count)
        decided = drawn.decided.cpu().numpy()
        token_ids[pending[decided]] = _on_host(drawn.token_ids)[decided]
        pending = pending[~decided]
    for row in pending:
        token_ids[row] = int(from_all(int(row)))
    return token_ids


def _draw_from_candidates(
    ranking: RankedRows, rows: DrawnRows, totals: NDArray[np.float64], count: int
) -> _Drawn:
    """Draw from the `count` highest-ranked tokens of each row."""
    vocab_size = ranking.vocab_size
    top = ranking.top(rows.index, count)

    def column(values: NDArray[Any]) -> torch.Tensor:
        return _tensor(top.ids, values)[:, None]

    log_weights = _log_weights(top.values.clone(), rows)
    weights = log_weights.exp().double()
    is_beyond_k = torch.arange(count, device=weights.device) >= column(rows.top_k)
    weights.masked_fill_(is_beyond_k | (weights < column(rows.min_p)), 0.0)
    # top_p is a share of the whole weight, or of what top_k and min_p leave, if all of that is candidates.
    of_all = column(rows.has_top_p_alone(vocab_size))
    knows_total = of_all | column(rows.top_k <= count) | (weights[:, -1:] == 0)
    total = torch.where(of_all, column(totals), running_sum(weights)[:, -1:])
    mass = torch.where(column(rows.top_p < 1), column(rows.top_p) * total, torch.inf)
    is_kept = _is_in_prefix(weights, mass[:, 0])
    decided = (knows_total[:, 0] & _ends_above_last(is_kept, top.values)) | (count == vocab_size)
    kept = top.by_id(weights.masked_fill_(~is_kept, 0.0))
    typical = np.flatnonzero(rows.typical_p < 1)
    if len(typical):
        index = torch.from_numpy(typical).to(kept.device)
        kept[index] = _keep_typical(kept[index], top.by_id(log_weights)[index], rows.typical_p[typical])
    return _Drawn(_pick(top.sorted_ids, kept, column(rows.uniform)[:, 0]), decided)


def _keep_typical(
    weights: torch.Tensor, log_weights: torch.Tensor, typical_p: NDArray[np.float64]
) -> torch.Tensor:
    """Return the weights that typical_p keeps, and 0 for the others; all are [N, count] in the order of ids.

    The sums are in the order of ids, so the number of candidates does not change them.
    """
    log_weights.clamp_(min=MIN_LOG_WEIGHT)
    total, expected = running_sum(weights)[:, -1], running_sum(weights * log_weights)[:, -1]
    closeness = _closeness(log_weights, expected / total).masked_fill_(weights == 0, -torch.inf)
    order = closeness.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(1, order)
    ranked.masked_fill_(~_is_in_prefix(ranked, _tensor(weights, typical_p) * total), 0.0)
    return torch.empty_like(ranked).scatter_(1, order, ranked)


def _draw_from_row(ranking: RankedRows, rows: DrawnRows, whole: float) -> torch.Tensor:
    """Draw from all tokens of one row. `whole` is the weight of all of them, if top_p is a share of that."""
    values = ranking.take(rows.index)[0]
    log_weights = _log_weights(values.clone()[None], rows)[0]
    weights = log_weights.exp().double()
    nat = max(rows.temperature[0], MIN_TEMPERATURE)
    weights.masked_fill_(weights < rows.min_p[0], 0.0)
    if rows.top_k[0] < len(weights):
        weights.mul_(keep_top_mass(values, (weights > 0).double(), float(rows.top_k[0]), nat))
    if rows.top_p[0] < 1:
        of_all = rows.has_top_p_alone(len(weights))[0]
        total = whole if of_all else float(running_sum(weights[None])[0, -1])
        weights = keep_top_mass(values, weights, rows.top_p[0] * total, nat)
    if rows.typical_p[0] < 1:
        log_weights.clamp_(min=MIN_LOG_WEIGHT)
        left, expected = (running_sum(each[None])[:, -1] for each in (weights, weights * log_weights))
        closeness = _closeness(log_weights[None], expected / left)[0]
        weights = keep_top_mass(closeness, weights, rows.typical_p[0] * float(left))
    return _pick_one(weights, _tensor(weights, rows.uniform)[0])


def _totals(ranking: RankedRows, rows: DrawnRows) -> NDArray[np.float64]:
    """Return float64 [N]: the weight of all tokens if top_p is a share of that, otherwise 0."""
    totals = np.zeros(len(rows))
    for index in _chunks(rows.has_top_p_alone(ranking.vocab_size)):
        some = rows[index]
        totals[index] = block_sum(_log_weights(ranking.take(some.index), some).exp_()).cpu().numpy()
    return totals


def _log_weights(values: torch.Tensor, rows: DrawnRows) -> torch.Tensor:
    """Turn logits into log weights, in place.

    The maximum is subtracted before the division, so that a tiny temperature does not overflow.
    """
    max_logit = _tensor(values, rows.max_logit).to(values.dtype)
    temperature = _tensor(values, np.maximum(rows.temperature, MIN_TEMPERATURE)).to(values.dtype)
    return values.sub_(max_logit[:, None]).div_(temperature[:, None])


def _closeness(log_weights: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return -|-log p - H|, computed in place.

    It equals -|log w - sum(p * log w)|, because the logarithm of the total weight cancels out.
    """
    return log_weights.sub_(expected.to(log_weights.dtype)[:, None]).abs_().neg_()


def _is_in_prefix(weights: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Return bool [N, count]: whether a token is in the shortest prefix of the ranking that reaches `mass`.

    A token with a weight of 0 never is.
    """
    sums = running_sum(weights)
    before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], dim=-1)
    return (before < mass[:, None]) & (weights > 0)


def _ends_above_last(is_kept: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return bool [N]: whether the kept prefix ends above the value of the last candidate.

    If so, the tokens that are not candidates are not kept either.
    """
    last = (is_kept.sum(dim=-1) - 1).clamp(min=0)
    return values.gather(1, last[:, None])[:, 0] > values[:, -1]


def _pick(ids: torch.Tensor, weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return ids.gather(1, inverse_cdf(weights, uniform)[:, None])[:, 0]


def _pick_one(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return inverse_cdf(weights[None], uniform[None])[0]


def _chunks(mask: NDArray[np.bool_]) -> Iterator[RowIndices]:
    """Yield the indices of the rows in `mask`, at most MAX_FULL_ROWS at a time."""
    indices = np.flatnonzero(mask)
    for start in range(0, len(indices), MAX_FULL_ROWS):
        yield indices[start : start + MAX_FULL_ROWS]


def _tensor(like: torch.Tensor, values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device)


def _on_host(token_ids: torch.Tensor) -> RowIndices:
    result: RowIndices = token_ids.cpu().numpy()
    return result
