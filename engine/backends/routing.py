"""route: the experts of each token, and their weights."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pagefleet.engine.model_spec import MoeSpec, RouterSpec

__all__ = ["Routes", "route"]


class Routes(NamedTuple):
    """The experts of T tokens."""

    experts: torch.Tensor
    """int64 [T, top_k]"""
    weights: torch.Tensor
    """[T, top_k], in the dtype of the logits or float32 if that is wider."""


def route(logits: torch.Tensor, spec: MoeSpec, correction: torch.Tensor | None = None) -> Routes:
    """Return the experts that the router's logits [T, experts] choose.

    Args:
        correction: the bias [experts] that is added to the scores to choose the experts, but not to weigh
        them.
    """
    router = spec.router
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if router.scores == "softmax_of_top":
        top = logits.topk(spec.top_k, dim=-1)
        return Routes(top.indices, top.values.softmax(-1) * router.scale)
    scores = logits.sigmoid() if router.scores == "sigmoid" else logits.softmax(-1)
    choice = scores if correction is None else scores + correction.to(scores.dtype)
    if router.num_groups > 1:
        choice = _within_top_groups(choice, router)
    experts = choice.topk(spec.top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if router.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routes(experts, weights * router.scale)


def _within_top_groups(choice: torch.Tensor, router: RouterSpec) -> torch.Tensor:
    """Return the scores with those of all but the best groups replaced (DeepSeek-V2, section 2.1.3)."""
    groups = choice.view(len(choice), router.num_groups, -1)
    scores = groups.topk(2, dim=-1).values.sum(-1) if router.group_score == "top2" else groups.amax(-1)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(-1, scores.topk(router.top_groups, dim=-1).indices, True)
    return groups.masked_fill(~kept[:, :, None], router.masked_score).view_as(choice)
