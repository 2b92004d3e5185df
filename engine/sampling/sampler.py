"""Sampler: the interface between a step's logits and its token ids. Does not know models or sequences.

1. The grammars' masks and the rows' rules change the logits.
2. temperature 0: the first token in the ranking by (logit descending, id ascending). Otherwise the filters
   and one draw, by a uniform number that is a function of (seed, choice, position) alone (philox.py).

A row's token is a function of its own logits, parameters and tokens. The rest of the batch does not change
it, so a sequence continues with the same draws in any batch and any process.

`ReferenceSampler` (reference_sampler.py) defines the arithmetic. A backend may bring a sampler of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowIndices, SamplingBatch

__all__ = ["Sampler"]


class Sampler(ABC):
    """See the module's docstring."""

    @abstractmethod
    def sample(
        self, logits: torch.Tensor, batch: SamplingBatch, masks: GrammarMasks | None = None
    ) -> RowIndices:
        """Return int64 [N] on the host: a token id for each row of `logits` [N, vocab], which are not
        changed.

        The masks apply before everything else. A row whose logits contain a NaN, or nothing but -inf, yields
        the id `vocab_size`.
        """
