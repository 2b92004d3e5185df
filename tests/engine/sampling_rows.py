"""Rows of a sampler's batch for tests, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowRules, SamplingBatch
from pagefleet.engine.sampling.sampling_params import SamplingParams


class SamplingRow(NamedTuple):
    """What decides the token of one row besides its logits."""

    params: SamplingParams
    seed: int
    choice: int
    position: int
    rules: LogitRules | None = None
    token_ids: Sequence[int] = ()


def batch_of(rows: Sequence[SamplingRow]) -> SamplingBatch:
    batch = SamplingBatch.empty(len(rows))
    rules = []
    for index, row in enumerate(rows):
        batch.write(index, row.params, row.seed, row.choice, row.position)
        if row.rules is not None:
            rules.append(RowRules(index, row.rules, np.array(row.token_ids, dtype=np.int32)))
    return replace(batch, rules=rules)


def sample(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    masks: GrammarMasks | None = None,
    sampler: ReferenceSampler | None = None,
) -> list[int]:
    return (sampler or ReferenceSampler()).sample(logits, batch_of(rows), masks).tolist()
