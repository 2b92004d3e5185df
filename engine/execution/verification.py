"""Verification: a step's drafts beside what would have been found without them.

Behind every token that is known or drafted one is sampled, as plain decoding samples it there: with the same
seed and position, with the parameters, counts and grammar as they are after the drafts before it. As long as
that is the draft, the next one was sampled for the right text; the first that is not is the sequence's next
token itself. So the tokens are those of plain decoding, and the drafts only decide how many a step finds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.scheduler_output import ScheduledSequence
from pagefleet.engine.core.speculation import num_verified
from pagefleet.engine.outputs import Sampled
from pagefleet.engine.sampling.sampling_rows import SamplingRow

__all__ = ["agreed", "logit_rows", "sampling_rows"]


def logit_rows(scheduled: Sequence[ScheduledSequence]) -> NDArray[np.int64]:
    """The rows of the ragged batch behind which a token is sampled: each sequence's last known token, and its
    drafts."""
    ends = np.cumsum([entry.num_new_tokens for entry in scheduled])
    rows = [
        np.arange(end - 1 - len(entry.draft_token_ids), end)
        for entry, end in zip(scheduled, ends, strict=True)
        if entry.is_sampled
    ]
    return np.concatenate(rows).astype(np.int64) if rows else np.empty(0, dtype=np.int64)


def sampling_rows(scheduled: Sequence[ScheduledSequence]) -> list[SamplingRow]:
    """What decides each row of `logit_rows`."""
    rows = []
    for entry in scheduled:
        if entry.is_sampled:
            rows += _rows(entry)
    return rows


def agreed(scheduled: Sequence[ScheduledSequence], sampled: Sequence[Sampled]) -> list[Sampled]:
    """What was found for each entry, from what was sampled for `sampling_rows`, a token each."""
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
