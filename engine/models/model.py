"""Model: what the executor needs of a loaded model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from pagefleet.engine.backends.base import Backend
from pagefleet.engine.model_spec import ModelSpec

__all__ = ["Model"]


class Model(ABC):
    """A loaded model: computes logits from token ids. Its backend owns the KV cache."""

    spec: ModelSpec
    backend: Backend[Any, Any]

    @abstractmethod
    def forward(self, plan: Any, rows: torch.Tensor) -> torch.Tensor:
        """Compute one step; return a state of each of `rows` of the ragged batch, for `logits`: [len(rows),
        N].

        `plan` is the result of the backend's `begin_step`. The keys and values of all tokens are written to
        the KV cache.
        """

    @abstractmethod
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, vocab] of states that `forward` returned, N >= 1."""
