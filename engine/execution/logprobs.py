"""Logprobs of tokens in the model's distribution, before any sampling parameter changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.outputs import TokenLogprobs

__all__ = ["token_logprobs"]


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Return, for each row of logits [N, vocab], its token's logprob and rank and its `num_top` most likely
    tokens.

    logprob(t) = logit(t) - logsumexp(logits), in float32 or wider. A row depends only on its own logits; of
    tokens with equal logits the smaller id comes first, also if only some of them are among the top.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = logits.logsumexp(dim=-1, keepdim=True)
    chosen = logits.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (logits > chosen).sum(dim=-1) + 1
    rows, columns = _candidates(logits, num_top)
    logprobs = logits[rows, columns] - total[rows, 0]
    # One copy to the host: float64 represents ids and ranks exactly.
    parts = ((chosen - total)[:, 0], ranks, rows, columns, logprobs)
    on_host = torch.cat([part.double() for part in parts]).cpu().numpy()
    split = np.split(on_host, np.cumsum([len(part) for part in parts[:-1]]))
    tops = _tops(split[2], split[3], split[4], np.array(num_top))
    found = zip(token_ids, split[0].tolist(), split[1].astype(np.int64).tolist(), tops, strict=True)
    return [TokenLogprobs(*row) for row in found]


def _candidates(logits: torch.Tensor, num_top: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns, in their order, of logits that may be among the most likely ones."""
    widest = min(max(num_top), logits.shape[-1])
    if not widest:
        none = torch.empty(0, dtype=torch.int64, device=logits.device)
        return none, none
    # topk chooses any of equal values: take all that are at least as large as its last one.
    least = logits.topk(widest, dim=-1).values[:, -1:]
    rows, columns = (logits >= least).nonzero(as_tuple=True)
    return rows, columns


def _tops(
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    logprobs: NDArray[np.float64],
    num_top: NDArray[np.int64],
) -> list[tuple[tuple[int, float], ...]]:
    """Return, for each row, its `num_top` most likely tokens."""
    # The order is stable: of equals, the smaller id remains the first.
    order = np.lexsort((-logprobs, rows))
    token_ids = columns[order].astype(np.int64).tolist()
    ranked = list(zip(token_ids, logprobs[order].tolist(), strict=True))
    bounds = np.searchsorted(rows[order], np.arange(len(num_top) + 1))
    ends = np.minimum(bounds[:-1] + num_top, bounds[1:])
    return [tuple(ranked[start:end]) for start, end in zip(bounds.tolist(), ends.tolist(), strict=False)]
