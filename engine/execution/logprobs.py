"""Logprobs of tokens in the model's distribution, before any sampling parameter changes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
    ranks = ((logits > chosen).sum(dim=-1) + 1).tolist()
    own = (chosen - total)[:, 0].tolist()
    tops = _top(logits, total, num_top)
    return [TokenLogprobs(*row) for row in zip(token_ids, own, ranks, tops, strict=True)]


def _top(
    logits: torch.Tensor, total: torch.Tensor, num_top: Sequence[int]
) -> list[tuple[tuple[int, float], ...]]:
    widest = min(max(num_top), logits.shape[-1])
    if not widest:
        return [()] * len(logits)
    # topk chooses any of equal values: rank all that are at least as large as its last one again.
    least = logits.topk(widest, dim=-1).values[:, -1:]
    rows, columns = (logits >= least).nonzero(as_tuple=True)
    values = (logits - total)[rows, columns]
    by_rank = torch.argsort(values, descending=True, stable=True)
    by_row = by_rank[torch.argsort(rows[by_rank], stable=True)]
    tops: list[list[tuple[int, float]]] = [[] for _ in range(len(logits))]
    ranked = zip(rows[by_row].tolist(), columns[by_row].tolist(), values[by_row].tolist(), strict=True)
    for row, token_id, logprob in ranked:
        if len(tops[row]) < num_top[row]:
            tops[row].append((token_id, logprob))
    return [tuple(top) for top in tops]
