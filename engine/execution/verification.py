"""Verification of drafts (speculative decoding): which draft tokens equal those that would have been sampled.

After the last known token and after each draft, one token is sampled exactly as decoding without drafts
would: with the same seed and position, and with the parameters, counts and grammar as they are after the
drafts before it. If the token equals the draft, the next row was sampled for the right text. The first one
that differs is the next token itself. So the tokens are those of decoding without drafts; drafts only change
how many of them a step finds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.speculation import num_verified
from pagefleet.engine.outputs import Sampled
from pagefleet.engine.sampling.sampling_rows import SamplingRow

__all__ = ["logit_rows", "sampling_rows", "verify"]


def logit_rows(scheduled: Sequence[ScheduledSequence]) -> NDArray[np.int64]:
    """Return the rows of the ragged batch after which a token is sampled: last known tokens and drafts."""
    ends = np.cumsum([entry.num_new_tokens for entry in scheduled])
    rows = [
        np.arange(end - 1 - len(entry.draft_token_ids), end)
        for entry, end in zip(scheduled, ends, strict=True)
        if entry.is_sampled
    ]
    return np.concatenate(rows).astype(np.int64) if rows else np.empty(0, dtype=np.int64)


def sampling_rows(scheduled: Sequence[ScheduledSequence]) -> list[SamplingRow]:
    """Return the sampling state of each row of `logit_rows`."""
    rows = []
    for entry in scheduled:
        if entry.is_sampled:
            rows += _rows(entry)
    return rows


def verify(scheduled: Sequence[ScheduledSequence], sampled: Sequence[Sampled]) -> list[Sampled]:
    """Return the result for each entry, given the token that was sampled for each of `sampling_rows`."""
    found, row = [], 0
    for entry in scheduled:
        num_rows = len(entry.draft_token_ids) + 1 if entry.is_sampled else 0
        rows = sampled[row : row + num_rows]
        token_ids = [each.token_ids[0] for each in rows]
        num_found = num_verified(token_ids, entry.draft_token_ids)
        logprobs = tuple(logprob for each in rows[:num_found] for logprob in each.logprobs)
        found.append(Sampled(tuple(token_ids[:num_found]), logprobs))
        row += num_rows
    return found


def _rows(entry: ScheduledSequence) -> list[SamplingRow]:
    sequence = entry.sequence
    rules, known = sequence.logit_rules, sequence.token_ids
    first = SamplingRow(
        sequence.sampling_params, sequence.seed, sequence.choice, sequence.num_output_tokens, rules, known
    )
    rows = [first]
    drafted = entry.draft_token_ids
    for num_drafts in range(1, len(drafted) + 1):
        row = first._replace(position=first.position + num_drafts)
        if rules is not None:
            text = [*known, *drafted[:num_drafts]]
            row = row._replace(rules=rules.fork(known), token_ids=text)
        rows.append(row)
    return rows
