"""SampledStep: what the sampled rows of a step need besides their logits."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.execution.token_masks import GrammarRow
from pagefleet.engine.execution.verification import SampledRows, row_rules, sampled_rows
from pagefleet.engine.sampling.sampling_batch import RowRules, SamplingBatch

__all__ = ["SampledStep", "sampled_step"]


class SampledStep(NamedTuple):
    """What the rows of a step that are sampled need besides their logits."""

    rows: SampledRows
    batch: SamplingBatch
    draft_token_ids: NDArray[np.int64]
    """Of all sampled entries, end to end."""
    grammar_rows: list[GrammarRow]
    num_logprobs: NDArray[np.int64]
    """[R]: the number of most likely tokens to return; -1 if no logprobs are requested."""


def sampled_step(scheduled: list[ScheduledSequence]) -> SampledStep:
    """Return the sampled rows of a step."""
    drafts = [entry.draft_token_ids if entry.is_sampled else [] for entry in scheduled]
    rows = sampled_rows(
        np.array([num_new_tokens for _, num_new_tokens in scheduled], dtype=np.int64),
        np.array([len(each) for each in drafts], dtype=np.int64),
        np.array([entry.is_sampled for entry in scheduled], dtype=np.bool_),
    )
    table = SamplingBatch.empty(len(scheduled))
    num_logprobs = np.full(len(scheduled), -1, dtype=np.int64)
    rules: list[RowRules] = []
    grammar_rows: list[GrammarRow] = []
    firsts = np.flatnonzero(rows.num_drafts == 0)
    for row, index in zip(firsts.tolist(), rows.entries[firsts].tolist(), strict=True):
        sequence, params = scheduled[index].sequence, scheduled[index].sequence.sampling_params
        table.write(index, params, sequence.seed, sequence.choice, sequence.num_output_tokens)
        rules += row_rules(row, sequence, drafts[index])
        grammar_rows.append(GrammarRow(row, sequence, drafts[index]))
        if params.logprobs is not None:
            num_logprobs[index] = params.logprobs
    batch = table.take(rows.entries)
    batch = replace(batch, position=batch.position + rows.num_drafts, rules=rules)
    flat = np.array([token_id for each in drafts for token_id in each], dtype=np.int64)
    return SampledStep(rows, batch, flat, grammar_rows, num_logprobs[rows.entries])
