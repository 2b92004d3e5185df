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

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.arrays import (
    Array,
    along,
    arange,
    concatenate,
    exp,
    stable_order,
    to_dtype_of,
    to_float64,
    to_tensor,
)
from pagefleet.engine.sampling.prefixes import ends_above_last, is_in_prefix
from pagefleet.engine.sampling.row_kinds import RowKind
from pagefleet.engine.sampling.row_sums import (
    block_sum,
    block_sums,
    inverse_cdf,
    inverse_cdf_in_blocks,
    running_sum,
)
from pagefleet.engine.sampling.sampling_batch import RowIndices, SamplingBatch
from pagefleet.engine.sampling.scratch import Scratch
from pagefleet.engine.sampling.top_tokens import RankedRows, keep_top_mass

__all__ = ["UNDECIDED", "TokenDraw"]

UNDECIDED = -1
"""The token id of a row that the candidates did not decide."""
MAX_HOST_TOKENS = 200_000
"""Tokens of all rows per pass over whole rows on a CPU, so that they stay in the processor's cache."""
MIN_TYPICAL_ROWS = 4
"""Rows per pass with typical_p alone, in any case: they need many small operations."""
MAX_DEVICE_TOKENS = 2**26
"""The same on a device, to bound the memory of a pass."""
MAX_CANDIDATES = 2**22
"""Candidates of all rows per pass, to bound its memory."""
MIN_TEMPERATURE = 1e-30
"""Smaller temperatures draw the same tokens, and float32 cannot represent them."""
MIN_LOG_WEIGHT = -1e4
"""Replaces the logarithm of a weight of 0 in sums, which must not contain an infinity."""


class _Rows(NamedTuple):
    """The parameters of some rows, each float64 [N]: tensors on a device, numpy's arrays on a CPU."""

    temperature: Array
    top_k: Array
    """The vocabulary size if the filter is off."""
    top_p: Array
    min_p: Array
    typical_p: Array
    uniform: Array
    """The number in [0, 1) that picks the token."""
    total: Array
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
        max_tokens = MAX_DEVICE_TOKENS if scratch is None else MAX_HOST_TOKENS
        self._max_rows = max(1, max_tokens // self._vocab_size)
        self._ranked = RankedRows(logits, places, scratch)
        self._batch = batch
        self._columns = self._upload(batch)
        self._rows = _Rows(*self._columns)
        # In the dtype of the logits [N, 1].
        self._max_logit = self._ranked.max()[:, None]
        self._temperature = to_dtype_of(self._max_logit, self._rows.temperature)[:, None]

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
            parts.append(self._advance(np.arange(num_free, len(self._kinds)), 0))
        token_ids = concatenate(parts)
        is_finite = abs(self._max_logit[:, 0]) < math.inf
        return to_tensor(token_ids * is_finite + self._vocab_size * ~is_finite)

    def advance(self, some: RowIndices, number: int) -> torch.Tensor:
        """Return the same as `start` for some rows that need round `number`."""
        return to_tensor(self._advance(some, number))

    def _advance(self, some: RowIndices, number: int) -> Array:
        count, batch = self._counts[number], self._batch
        is_alone = self._kinds[some] == RowKind.TYPICAL
        # Fewer candidates cannot decide a row that has top_k alone.
        is_tried = (batch.top_k < count) | (batch.top_p < 1) | (batch.min_p > 0) | (count == self._vocab_size)
        draws = [(is_alone, self._draw_typical), (is_tried[some] & ~is_alone, self._draw_ranked)]
        token_ids = self._on_device(np.full(len(some), UNDECIDED))
        for is_drawn, draw in draws:
            drawn = np.flatnonzero(is_drawn)
            for part in _slices(len(drawn), max(1, MAX_CANDIDATES // count)):
                token_ids[self._on_device(drawn[part])] = draw(some[drawn[part]], number)
        return token_ids

    def finish(self, row: int) -> int:
        """Return the token of one row with top_k, top_p or min_p, from all of its tokens, on a CPU."""
        return _pick_of_all(self._kept_ranked(row), float(self._rows.uniform[row]))

    def _upload(self, batch: SamplingBatch) -> Array:
        """Return the columns of `_Rows`, of which `total` is still 0, with one transfer for all of them."""
        columns = np.zeros((len(_Rows._fields), len(batch)))
        columns[0] = np.maximum(batch.temperature, MIN_TEMPERATURE)
        columns[1] = np.minimum(batch.top_k, self._vocab_size)
        columns[2], columns[3], columns[4] = batch.top_p, batch.min_p, batch.typical_p
        columns[5] = batch.uniforms()
        return self._on_device(columns)

    def _on_device(self, values: NDArray[Any]) -> Array:
        return values if self._scratch is not None else torch.from_numpy(values).to(self._ranked.device)

    def _take(self, some: RowIndices) -> _Rows:
        if len(some) == len(self._kinds):
            return self._rows
        return _Rows(*self._columns[:, self._on_device(some)])

    def _block_sums(self, num_rows: int) -> Array:
        """Return float64 [num_rows, blocks]: sums of the weights of the first rows."""
        parts = [
            block_sums(self._log_weights_of_all(part).exp_(), self._scratch)
            for part in _slices(num_rows, self._max_rows)
        ]
        sums = torch.cat(parts)
        return sums if self._scratch is None else sums.numpy()

    def _draw_free(self, sums: Array) -> Array:
        rows = slice(len(sums))

        def weights_of(columns: Array) -> Array:
            return exp(self._log_weights(self._ranked.gather(columns), rows))

        return inverse_cdf_in_blocks(sums, self._rows.uniform[rows], self._vocab_size, weights_of)

    def _draw_ranked(self, some: RowIndices, number: int) -> Array:
        """Draw from the highest-ranked tokens of rows with top_k, top_p or min_p."""
        count = self._counts[number]
        rows, top = self._take(some), self._ranked.top(some, count)
        log_weights = self._log_weights(top.values, self._on_device(some))
        weights = to_float64(exp(log_weights))
        weights *= (arange(count, weights) < rows.top_k[:, None]) & (weights >= rows.min_p[:, None])
        # top_p is a share of the whole weight, or of what top_k and min_p leave, if that is all candidates.
        of_all = (rows.top_k == self._vocab_size) & (rows.min_p == 0)
        knows_total = of_all | (rows.top_k <= count) | (weights[:, -1] == 0)
        sums = running_sum(weights)
        total = rows.total * of_all + sums[:, -1] * ~of_all
        is_kept = is_in_prefix(weights, sums, rows.top_p * total, rows.top_p < 1)
        decided = knows_total & ends_above_last(is_kept, top.values)
        order = top.ids.argsort(1)
        kept = along(weights * is_kept, order)
        start, stop = self._kinds[some].searchsorted([RowKind.MASS_TYPICAL, RowKind.RANK]).tolist()
        if start < stop:
            log_weights = along(log_weights[start:stop], order[start:stop])
            kept[start:stop] = _keep_typical(kept[start:stop], log_weights, rows.typical_p[start:stop])
        return self._decided(decided, _pick(top.ids, order, kept, rows.uniform), count)

    def _draw_typical(self, some: RowIndices, number: int) -> Array:
        """Draw from the most typical tokens of rows that have typical_p alone."""
        max_rows = max(MIN_TYPICAL_ROWS, self._max_rows)
        parts = [self._draw_closest(some[part], number) for part in _slices(len(some), max_rows)]
        return concatenate(parts)

    def _draw_closest(self, some: RowIndices, number: int) -> Array:
        rows = self._take(some)
        closeness, weights, total = self._closeness(some)
        mass = rows.typical_p * self._small(total)
        closest, all_weights = RankedRows(closeness, scratch=self._scratch), self._small(weights)

        def draw(index: RowIndices, count: int) -> Array:
            places = self._on_device(index)
            top = closest.top(index, count)
            ranked = to_float64(all_weights[places[:, None], top.ids])
            is_kept = is_in_prefix(ranked, running_sum(ranked), mass[places])
            order = top.ids.argsort(1)
            kept = along(ranked * is_kept, order)
            decided = ends_above_last(is_kept, top.values)
            return self._decided(decided, _pick(top.ids, order, kept, rows.uniform[places]), count)

        if self._scratch is None:
            return draw(np.arange(len(some)), self._counts[number])
        # On a CPU all rounds, because the scratch memory has the closeness.
        token_ids = np.full(len(some), UNDECIDED)
        for count in self._counts[-2:]:
            if len(pending := np.flatnonzero(token_ids == UNDECIDED)):
                token_ids[pending] = draw(pending, count)
        for row in np.flatnonzero(token_ids == UNDECIDED).tolist():
            kept = keep_top_mass(closeness[row], weights[row].double(), float(mass[row]))
            token_ids[row] = _pick_of_all(kept, float(rows.uniform[row]))
        return token_ids

    def _decided(self, decided: Array, token_ids: Array, count: int) -> Array:
        if count == self._vocab_size:
            return token_ids
        return token_ids * decided + UNDECIDED * ~decided

    def _small(self, values: torch.Tensor) -> Array:
        return values if self._scratch is None else values.numpy()

    def _kept_ranked(self, row: int) -> torch.Tensor:
        """Return the weights [vocab] of the tokens that the filters keep of one row, and 0 for the others."""
        _, top_k, top_p, min_p, typical_p, _, whole = (float(column[row]) for column in self._rows)
        nat = float(self._rows.temperature[row])
        values, log_weights = (
            self._ranked.take(slice(row, row + 1))[0],
            self._log_weights_of_all(slice(row, row + 1))[0],
        )
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

    def _log_weights(self, logits: Array, some: Array) -> Array:
        """Return the log weights of some logits [N, M] of these rows.

        The maximum is subtracted before the division, so that a tiny temperature does not overflow.
        """
        log_weights = logits - self._max_logit[some]
        log_weights /= self._temperature[some]
        return log_weights

    def _log_weights_of_all(self, some: RowIndices | slice) -> torch.Tensor:
        """Return the log weights of all tokens of these rows, valid until the next call."""
        index = some if isinstance(some, slice) else self._on_device(some)
        max_logit, temperature = to_tensor(self._max_logit[index]), to_tensor(self._temperature[index])
        return self._ranked.minus(some, max_logit).div_(temperature)

    def _closeness(self, some: RowIndices) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the closeness and the weight of all tokens, both [N, vocab], and the total weight [N]."""
        log_weights = self._log_weights_of_all(some).clamp_(min=MIN_LOG_WEIGHT)
        weights, products = torch.empty_like(log_weights), None
        if self._scratch is not None:
            weights, products = (
                self._scratch.get(name, log_weights.shape, log_weights.dtype)
                for name in ("weights", "products")
            )
        torch.exp(log_weights, out=weights)
        total = block_sum(weights, self._scratch)
        expected = block_sum(torch.mul(weights, log_weights, out=products), self._scratch)
        return _closeness(log_weights, expected / total), weights, total


def _keep_typical(weights: Array, log_weights: Array, typical_p: Array) -> Array:
    """Return the weights that typical_p keeps, and 0 for the others; all are [N, count] in the order of ids.

    The sums are in the order of ids, so the number of candidates does not change them.
    """
    log_weights = log_weights.clip(min=MIN_LOG_WEIGHT)
    total, expected = running_sum(weights)[:, -1], running_sum(weights * log_weights)[:, -1]
    distance = abs(log_weights - to_dtype_of(log_weights, expected / total)[:, None])
    # Removed tokens come last.
    distance += to_dtype_of(log_weights, (weights == 0) * -MIN_LOG_WEIGHT * 2)
    order = stable_order(distance)
    ranked = along(weights, order)
    ranked *= is_in_prefix(ranked, running_sum(ranked), typical_p * total)
    return along(ranked, order.argsort(1))


def _closeness(log_weights: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return -|-log p - H|, computed in place.

    It equals -|log w - sum(p * log w)|, because the logarithm of the total weight cancels out.
    """
    return log_weights.sub_(expected.to(log_weights.dtype)[:, None]).abs_().neg_()


def _pick(ids: Array, order: Array, weights: Array, uniform: Array) -> Array:
    """Return the token of each row, given the order of its ids, and its weights in that order."""
    rows = arange(len(ids), ids)
    return ids[rows, order[rows, inverse_cdf(weights, uniform)]]


def _pick_of_all(weights: torch.Tensor, uniform: float) -> int:
    """Return the token of one row, given the weights [vocab] of its tokens."""
    return int(inverse_cdf(weights.numpy()[None], np.array([uniform]))[0])


def _slices(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
