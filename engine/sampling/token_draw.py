"""TokenDraw: draws one token from each of some rows of logits: the filters, then one draw.

For one row with a temperature, with its tokens ranked by (logit descending, id ascending) and weights
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
keeps fewer than 64 tokens. The n highest-ranked tokens (the candidates) decide a row if all that it keeps
ranks above the last of them. Rows that are not decided are drawn together with the next larger n. On a device
the last n is the vocabulary; on a CPU `keep_top_mass` looks at the whole row but sorts little of it. There, a
token is the same to the last bit in every batch: each row is summed separately, and its own numbers determine
how it is decided.

Rows of one kind are drawn by the same operations, and none of these waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.row_sums import (
    Scratch,
    block_sum,
    block_sums,
    inverse_cdf,
    inverse_cdf_in_blocks,
    running_sum,
)
from pagefleet.engine.sampling.sampling_batch import RowIndices, SamplingBatch
from pagefleet.engine.sampling.top_tokens import RankedRows, keep_top_mass

__all__ = ["UNDECIDED", "RowKind", "TokenDraw", "row_kinds"]

UNDECIDED = -1
"""The token id of a row that the candidates did not decide."""
MAX_HOST_ROWS = 4
"""Rows of the whole vocabulary per pass on a CPU, so that their buffers stay in the processor's cache."""
MAX_DEVICE_ROWS = 256
"""The same on a device, to bound the memory of a pass."""
MAX_CANDIDATES = 2**22
"""Candidates of all rows per pass, to bound its memory."""
MIN_TEMPERATURE = 1e-30
"""Smaller temperatures draw the same tokens, and float32 cannot represent them."""
MIN_LOG_WEIGHT = -1e4
"""Replaces the logarithm of a weight of 0 in sums, which must not contain an infinity."""


class RowKind(IntEnum):
    """How a row is drawn. Kinds that share an operation are neighbours."""

    GREEDY = 0
    FREE = 1
    """Without a filter."""
    MASS = 2
    """top_p without top_k and min_p: a share of the whole vocabulary's weight."""
    MASS_TYPICAL = 3
    """The same, and typical_p."""
    RANK_TYPICAL = 4
    """top_k or min_p, maybe top_p, and typical_p."""
    RANK = 5
    """top_k or min_p, maybe top_p."""
    TYPICAL = 6
    """typical_p alone."""


_KINDS = np.array(
    [
        RowKind.FREE,
        RowKind.TYPICAL,
        RowKind.MASS,
        RowKind.MASS_TYPICAL,
        *(RowKind.RANK, RowKind.RANK_TYPICAL) * 2,
        *(RowKind.GREEDY,) * 8,
    ]
)
"""By 8 * greedy + 4 * (top_k or min_p) + 2 * top_p + typical_p."""


def row_kinds(batch: SamplingBatch, vocab_size: int) -> NDArray[np.int64]:
    """Return the `RowKind` of each row."""
    code = (batch.temperature == 0) * 8
    code += ((batch.top_k < vocab_size) | (batch.min_p > 0)) * 4
    code += (batch.top_p < 1) * 2
    code += batch.typical_p < 1
    kinds: NDArray[np.int64] = _KINDS[code]
    return kinds


class _Rows(NamedTuple):
    """The parameters of some rows, each float64 [N] on the device of the logits."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """The vocabulary size if the filter is off."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    typical_p: torch.Tensor
    uniform: torch.Tensor
    """The number in [0, 1) that picks the token."""
    max_logit: torch.Tensor
    total: torch.Tensor
    """The weight of all tokens of rows whose top_p is a share of that."""


class TokenDraw:
    """The draw of some rows with a temperature, in rounds with more and more candidates.

    Args:
        logits: [M, vocab], contiguous; they are not changed.
        places: [N], the rows of the logits.
        batch: the parameters of these rows. Rules and masks are already applied to the logits.
        kinds: [N], ascending and without GREEDY.
        counts: the numbers of candidates in each round. On a device, the last one is the vocabulary size.
        scratch: memory for passes on a CPU. None: the methods for a device are used.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        places: RowIndices,
        batch: SamplingBatch,
        kinds: NDArray[np.int64],
        counts: Sequence[int],
        scratch: Scratch | None,
    ) -> None:
        self._vocab_size = logits.shape[-1]
        self._counts = counts
        self._kinds = kinds
        self._scratch = scratch
        self._max_rows = MAX_DEVICE_ROWS if scratch is None else MAX_HOST_ROWS
        self._ranked = RankedRows(logits, places, on_host=scratch is not None)
        self._batch = batch
        self._columns = self._upload(batch)
        self._rows = _Rows(*self._columns)

    def start(self) -> torch.Tensor:
        """Return int64 [N]: the token ids, and UNDECIDED for rows that need another round.

        A row whose largest logit is not finite yields the vocabulary size.
        """
        num_free, num_with_sums = self._kinds.searchsorted([RowKind.MASS, RowKind.RANK_TYPICAL]).tolist()
        parts = []
        if num_with_sums:
            sums = self._block_sums(num_with_sums)
            if num_with_sums > num_free:
                self._rows.total[num_free:num_with_sums] = running_sum(sums[num_free:])[:, -1]
            if num_free:
                parts.append(self._draw_free(sums[:num_free]))
        if num_free < len(self._kinds):
            parts.append(self.advance(np.arange(num_free, len(self._kinds)), 0))
        token_ids = torch.cat(parts) if len(parts) > 1 else parts[0]
        return token_ids.masked_fill_(~self._rows.max_logit.isfinite(), self._vocab_size)

    def advance(self, some: RowIndices, number: int) -> torch.Tensor:
        """Return the same as `start` for some rows that need round `number`."""
        count = self._counts[number]
        is_alone = self._kinds[some] == RowKind.TYPICAL
        # Fewer candidates cannot decide a row that has top_k alone.
        batch = self._batch.take(some)
        is_tried = (batch.top_k < count) | (batch.top_p < 1) | (batch.min_p > 0) | (count == self._vocab_size)
        draws = [(is_alone, self._draw_typical), (is_tried & ~is_alone, self._draw_ranked)]
        token_ids = torch.full((len(some),), UNDECIDED, device=self._columns.device)
        for is_drawn, draw in draws:
            drawn = np.flatnonzero(is_drawn)
            for part in _slices(len(drawn), max(1, MAX_CANDIDATES // count)):
                token_ids[self._on_device(drawn[part])] = draw(some[drawn[part]], number)
        return token_ids

    def finish(self, row: int) -> int:
        """Return the token of one row with top_k, top_p or min_p, from all of its tokens, on a CPU."""
        return int(_pick_of_all(self._kept_ranked(row), self._rows.uniform[row]))

    def _upload(self, batch: SamplingBatch) -> torch.Tensor:
        """Return the columns of `_Rows`, of which `total` is still 0, with one transfer for all of them."""
        columns = np.zeros((len(_Rows._fields), len(batch)))
        columns[0] = np.maximum(batch.temperature, MIN_TEMPERATURE)
        columns[1] = np.minimum(batch.top_k, self._vocab_size)
        columns[2], columns[3], columns[4] = batch.top_p, batch.min_p, batch.typical_p
        columns[5] = batch.uniforms()
        uploaded = self._on_device(columns)
        uploaded[6] = self._ranked.max()
        return uploaded

    def _on_device(self, values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._ranked.device)

    def _take(self, some: RowIndices) -> _Rows:
        if len(some) == len(self._kinds):
            return self._rows
        return _Rows(*self._columns.index_select(1, self._on_device(some)))

    def _block_sums(self, num_rows: int) -> torch.Tensor:
        """Return float64 [num_rows, blocks]: sums of the weights of the first rows."""
        rows = np.arange(num_rows)
        parts = [
            block_sums(self._log_weights(rows[part]).exp_(), self._scratch)
            for part in _slices(num_rows, self._max_rows)
        ]
        return torch.cat(parts)

    def _draw_free(self, sums: torch.Tensor) -> torch.Tensor:
        rows = _Rows(*self._columns[:, : len(sums)])

        def weights_of(columns: torch.Tensor) -> torch.Tensor:
            return _log_weights(self._ranked.gather(columns), rows).exp_()

        return inverse_cdf_in_blocks(sums, rows.uniform, self._vocab_size, weights_of)

    def _draw_ranked(self, some: RowIndices, number: int) -> torch.Tensor:
        """Draw from the highest-ranked tokens of rows with top_k, top_p or min_p."""
        count = self._counts[number]
        rows, top = self._take(some), self._ranked.top(some, count)
        log_weights = _log_weights(top.values, rows)
        weights = log_weights.exp().double()
        is_beyond_k = torch.arange(count, device=weights.device) >= rows.top_k[:, None]
        weights.masked_fill_(is_beyond_k | (weights < rows.min_p[:, None]), 0.0)
        # top_p is a share of the whole weight, or of what top_k and min_p leave, if that is all candidates.
        of_all = (rows.top_k == self._vocab_size) & (rows.min_p == 0)
        knows_total = of_all | (rows.top_k <= count) | (weights[:, -1] == 0)
        total = torch.where(of_all, rows.total, running_sum(weights)[:, -1])
        is_kept = _is_in_prefix(weights, torch.where(rows.top_p < 1, rows.top_p * total, torch.inf))
        decided = knows_total & _ends_above_last(is_kept, top.values)
        sorted_ids, order = top.ids.sort(dim=-1)
        kept = weights.masked_fill_(~is_kept, 0.0).gather(1, order)
        start, stop = self._kinds[some].searchsorted([RowKind.MASS_TYPICAL, RowKind.RANK]).tolist()
        if start < stop:
            log_weights = log_weights[start:stop].gather(1, order[start:stop])
            kept[start:stop] = _keep_typical(kept[start:stop], log_weights, rows.typical_p[start:stop])
        return self._decided(decided, _pick(sorted_ids, kept, rows.uniform), count)

    def _draw_typical(self, some: RowIndices, number: int) -> torch.Tensor:
        """Draw from the most typical tokens of rows that have typical_p alone."""
        parts = [self._draw_closest(some[part], number) for part in _slices(len(some), self._max_rows)]
        return torch.cat(parts)

    def _draw_closest(self, some: RowIndices, number: int) -> torch.Tensor:
        rows = self._take(some)
        closeness, weights, total = self._closeness(some)
        mass = rows.typical_p * total
        closest = RankedRows(closeness, on_host=self._scratch is not None)

        def draw(index: RowIndices, count: int) -> torch.Tensor:
            places = self._on_device(index)
            top = closest.top(index, count)
            ranked = weights[places[:, None], top.ids].double()
            is_kept = _is_in_prefix(ranked, mass[places])
            sorted_ids, order = top.ids.sort(dim=-1)
            kept = ranked.masked_fill_(~is_kept, 0.0).gather(1, order)
            decided = _ends_above_last(is_kept, top.values)
            return self._decided(decided, _pick(sorted_ids, kept, rows.uniform[places]), count)

        if self._scratch is None:
            return draw(np.arange(len(some)), self._counts[number])
        # On a CPU all rounds, because the scratch memory has the closeness. The first count is seldom enough.
        token_ids = torch.full((len(some),), UNDECIDED)
        for count in self._counts[1:] or self._counts:
            if len(pending := np.flatnonzero(token_ids.numpy() == UNDECIDED)):
                token_ids[torch.from_numpy(pending)] = draw(pending, count)
        for row in np.flatnonzero(token_ids.numpy() == UNDECIDED).tolist():
            kept = keep_top_mass(closeness[row], weights[row].double(), float(mass[row]))
            token_ids[row] = _pick_of_all(kept, rows.uniform[row])
        return token_ids

    def _decided(self, decided: torch.Tensor, token_ids: torch.Tensor, count: int) -> torch.Tensor:
        return token_ids if count == self._vocab_size else token_ids.masked_fill_(~decided, UNDECIDED)

    def _kept_ranked(self, row: int) -> torch.Tensor:
        """Return the weights [vocab] of the tokens that the filters keep of one row, and 0 for the others."""
        _, top_k, top_p, min_p, typical_p, _, _, whole = (float(column[row]) for column in self._rows)
        nat = float(self._rows.temperature[row])
        values, log_weights = self._ranked.take(np.array([row]))[0], self._log_weights(np.array([row]))[0]
        weights = log_weights.exp().double()
        weights.masked_fill_(weights < min_p, 0.0)
        if top_k < len(weights):
            weights.mul_(keep_top_mass(values, (weights > 0).double(), top_k, nat))
        if top_p < 1:
            is_of_all = top_k == len(weights) and min_p == 0
            total = whole if is_of_all else float(running_sum(weights[None])[0, -1])
            weights = keep_top_mass(values, weights, top_p * total, nat)
        if typical_p < 1:
            log_weights.clamp_(min=MIN_LOG_WEIGHT)
            left, expected = (running_sum(each[None])[:, -1] for each in (weights, weights * log_weights))
            closeness = _closeness(log_weights[None], expected / left)[0]
            weights = keep_top_mass(closeness, weights, typical_p * float(left))
        return weights

    def _log_weights(self, some: RowIndices) -> torch.Tensor:
        """Return the log weights of all tokens of these rows, in the scratch memory if there is one."""
        logits = self._ranked.take(some)
        out = None if self._scratch is None else self._scratch.get("log weights", logits, logits.dtype)
        return _log_weights(logits, self._take(some), out)

    def _closeness(self, some: RowIndices) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the closeness and the weight of all tokens, both [N, vocab], and the total weight [N]."""
        log_weights = self._log_weights(some).clamp_(min=MIN_LOG_WEIGHT)
        weights, products = torch.empty_like(log_weights), None
        if self._scratch is not None:
            weights, products = (
                self._scratch.get(name, log_weights, log_weights.dtype) for name in ("weights", "products")
            )
        torch.exp(log_weights, out=weights)
        total = block_sum(weights, self._scratch)
        expected = block_sum(torch.mul(weights, log_weights, out=products), self._scratch)
        return _closeness(log_weights, expected / total), weights, total


def _log_weights(values: torch.Tensor, rows: _Rows, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return the log weights of logits.

    The maximum is subtracted before the division, so that a tiny temperature does not overflow.
    """
    max_logit, temperature = (
        column.to(values.dtype)[:, None] for column in (rows.max_logit, rows.temperature)
    )
    return torch.sub(values, max_logit, out=out).div_(temperature)


def _keep_typical(weights: torch.Tensor, log_weights: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Return the weights that typical_p keeps, and 0 for the others; all are [N, count] in the order of ids.

    The sums are in the order of ids, so the number of candidates does not change them.
    """
    log_weights.clamp_(min=MIN_LOG_WEIGHT)
    total, expected = running_sum(weights)[:, -1], running_sum(weights * log_weights)[:, -1]
    closeness = _closeness(log_weights, expected / total).masked_fill_(weights == 0, -torch.inf)
    order = closeness.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(1, order)
    ranked.masked_fill_(~_is_in_prefix(ranked, typical_p * total), 0.0)
    return torch.empty_like(ranked).scatter_(1, order, ranked)


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


def _pick_of_all(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the token of one row, given the weights [vocab] of its tokens."""
    return inverse_cdf(weights[None], uniform[None])[0]


def _slices(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
