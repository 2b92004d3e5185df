"""ReferenceSampler: the sampler for every device, in numpy and torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.logits_processor import process_logits
from pagefleet.engine.sampling.row_kinds import RowKind, row_kinds
from pagefleet.engine.sampling.sampler import Sampler
from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowIndices, SamplingBatch
from pagefleet.engine.sampling.scratch import Scratch
from pagefleet.engine.sampling.token_draw import UNDECIDED, TokenDraw
from pagefleet.engine.sampling.top_tokens import row_max

__all__ = ["ReferenceSampler"]

HOST_CANDIDATES: Final = (64, 256, 2048)
"""How many tokens of a row are ranked on a CPU at first, and how many if these do not decide it."""
MIN_ROWS: Final = 4
"""Fewer rows skip the first of them: a round costs more than its tokens."""
DEVICE_CANDIDATES: Final = (256, 2048)
"""The same on a device, where a further round costs a copy to the host."""
MAX_COPIED_ROWS: Final = 4
"""Rows per pass on a CPU if they are copied first."""
MAX_HOST_ROWS: Final = 64
"""Rows with rules or masks per pass on a CPU. It bounds the memory of their copies."""


class ReferenceSampler(Sampler):
    """See `Sampler`. Tests may set the arguments; they never change a token.

    Args:
        num_candidates: the number of ranked tokens in each round.
        on_host: whether the CPU's methods are used. None: if the logits are on a CPU.
    """

    def __init__(self, num_candidates: Sequence[int] | None = None, on_host: bool | None = None) -> None:
        self._num_candidates = num_candidates
        self._on_host = on_host
        self._scratch = Scratch()

    def sample(
        self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None = None
    ) -> RowIndices:
        """See `Sampler.sample`. On a device, each round of candidates copies once to the host."""
        assert len(logits) == len(batch)
        on_host = logits.device.type == "cpu" if self._on_host is None else self._on_host
        if not batch.rules and masks is None and not batch.temperature.any():
            return _on_host([_greedy(logits, None, None)])
        logits, kinds = logits.contiguous(), row_kinds(batch, logits.shape[-1])
        parts = _parts(logits, batch, masks, kinds, MAX_HOST_ROWS if on_host else len(batch))
        token_ids = np.empty(len(batch), dtype=np.int64)
        # A CPU takes one part after the other, to use less memory; a device all together, to wait once.
        # Rows of NaN and of -inf are computed with the others, and yield no token.
        with np.errstate(all="ignore"):
            for some in ([part] for part in parts) if on_host else [list(parts)]:
                self._sample(some, token_ids, on_host)
        return token_ids

    def _sample(self, parts: list[_Part], token_ids: RowIndices, on_host: bool) -> None:
        """Set the token ids of the parts' rows."""
        counts = self._counts(len(token_ids), parts[0].logits.shape[-1], on_host)
        scratch = self._scratch if on_host else None
        found, draws = [], []
        for logits, rows, places, batch, kinds in parts:
            num_greedy = int(kinds.searchsorted(RowKind.FREE))
            if num_greedy:
                found.append(_greedy(logits, places[:num_greedy], scratch))
            if num_greedy < len(rows):
                drawn = batch.take(slice(num_greedy, None)) if num_greedy else batch
                draw = TokenDraw(logits, places[num_greedy:], drawn, kinds[num_greedy:], counts, scratch)
                found.append(draw.start())
                draws.append((draw, rows[num_greedy:]))
        token_ids[np.concatenate([part.rows for part in parts])] = _on_host(found)
        for number in range(1, len(counts)):
            pending = _pending(draws, token_ids)
            if not pending:
                return
            found = [draw.advance(some, number) for draw, _, some in pending]
            token_ids[np.concatenate([rows[some] for _, rows, some in pending])] = _on_host(found)
        for draw, rows, some in _pending(draws, token_ids):
            for row in some.tolist():
                token_ids[rows[row]] = draw.finish(row)

    def _counts(self, num_rows: int, vocab_size: int, on_host: bool) -> list[int]:
        counts = self._num_candidates
        if counts is None:
            counts = HOST_CANDIDATES[num_rows < MIN_ROWS :] if on_host else DEVICE_CANDIDATES
        # On a device, the last round ranks all tokens and decides all rows.
        return [min(count, vocab_size) for count in ((*counts,) if on_host else (*counts, vocab_size))] or [1]


class _Part(NamedTuple):
    """Rows that have their logits in one tensor, in the order of their kinds."""

    logits: torch.Tensor
    rows: RowIndices
    """[N], the rows of the whole batch."""
    places: RowIndices
    """[N], the same rows of `logits`."""
    batch: SamplingBatch
    kinds: NDArray[np.int64]


def _parts(
    logits: torch.Tensor,
    batch: SamplingBatch,
    masks: GrammarMasks | None,
    kinds: NDArray[np.int64],
    max_rows: int,
) -> Iterator[_Part]:
    """Yield the rows without rules and masks, whose logits are not copied, and the others, at most `max_rows`
    at a time."""
    num_unchanged, keys = len(batch), kinds
    if batch.rules or masks is not None:
        is_changed = np.zeros(len(batch), dtype=np.bool_)
        is_changed[[each.row for each in batch.rules]] = True
        if masks is not None:
            is_changed[masks.rows] = True
        num_unchanged -= int(is_changed.sum())
        keys = kinds + len(RowKind) * is_changed
    order = keys.argsort(kind="stable")
    if num_unchanged:
        rows = order[:num_unchanged]
        yield _Part(logits, rows, rows, batch.take(rows), kinds[rows])
    for start in range(num_unchanged, len(order), max_rows):
        rows = order[start : start + max_rows]
        own = batch.take(rows)
        processed = process_logits(logits, rows, own.rules, None if masks is None else masks.take(rows))
        yield _Part(processed, rows, np.arange(len(rows)), own, kinds[rows])


def _pending(
    draws: list[tuple[TokenDraw, RowIndices]], token_ids: RowIndices
) -> list[tuple[TokenDraw, RowIndices, RowIndices]]:
    """Return the draws that did not decide all of their rows, with the places of these rows."""
    if UNDECIDED not in token_ids:
        return []
    pending = [(draw, rows, np.flatnonzero(token_ids[rows] == UNDECIDED)) for draw, rows in draws]
    return [each for each in pending if len(each[2])]


def _greedy(logits: torch.Tensor, rows: RowIndices | None, scratch: Scratch | None) -> torch.Tensor:
    """Return the id of each row's largest logit, or the vocabulary size if that logit is not finite.

    `rows` None: of all rows.
    """
    if rows is None:
        values, token_ids = row_max(logits)
    elif scratch is None:
        values, token_ids = row_max(logits.index_select(0, torch.from_numpy(rows).to(logits.device)))
    else:
        parts = [rows[start : start + MAX_COPIED_ROWS] for start in range(0, len(rows), MAX_COPIED_ROWS)]
        found = [row_max(scratch.copy_rows(logits, part, logits.dtype)) for part in parts]
        values, token_ids = (torch.cat(each) for each in zip(*found, strict=True))
    return token_ids.masked_fill_(~values.isfinite(), logits.shape[-1])


def _on_host(token_ids: list[torch.Tensor]) -> RowIndices:
    result: RowIndices = (torch.cat(token_ids) if len(token_ids) > 1 else token_ids[0]).cpu().numpy()
    return result
