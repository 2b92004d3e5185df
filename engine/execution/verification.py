"""Verification of drafts (speculative decoding): which draft tokens equal those that would have been sampled.

After the last known token and after each draft, one token is sampled exactly as decoding without drafts
would: with the same seed and position, and with the parameters, counts and grammar as they are after the
drafts before it. If the token equals the draft, the next row was sampled for the right text. The first one
that differs is the next token itself. So the tokens are those of decoding without drafts; drafts only change
how many of them a step finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.sequence import Sequence as EngineSequence
from pagefleet.engine.sampling.sampling_batch import RowRules

__all__ = ["SampledRows", "row_rules", "sampled_rows"]

Indices = NDArray[np.int64]


class SampledRows(NamedTuple):
    """The rows of a step after which a token is sampled, as columns [R], in the order of the entries.

    For each sampled entry there is one row after its last known token and one after each draft.
    """

    logit_rows: Indices
    """Rows of the ragged batch."""
    entries: Indices
    """The index of the row's entry in the step."""
    num_drafts: Indices
    """How many drafts of its entry come before the sampled token."""


def sampled_rows(num_new_tokens: Indices, num_drafts: Indices, is_sampled: NDArray[np.bool_]) -> SampledRows:
    """Return the rows of a step, given three columns of its entries.

    `num_new_tokens` counts the tokens that the step computes, with the `num_drafts` drafts at their end.
    """
    ends = np.cumsum(num_new_tokens)
    entries = np.flatnonzero(is_sampled)
    if not num_drafts.any():
        return SampledRows(ends[entries] - 1, entries, np.zeros_like(entries))
    counts = num_drafts[entries] + 1
    before = _ranges(counts)
    entries = np.repeat(entries, counts)
    return SampledRows(ends[entries] - 1 - num_drafts[entries] + before, entries, before)


def row_rules(row: int, sequence: EngineSequence, draft_token_ids: Sequence[int]) -> Iterable[RowRules]:
    """Yield the rules of a sequence's row number `row`, after its last known token, and of the rows after its
    drafts; nothing if its parameters leave the logits unchanged."""
    rules = sequence.logit_rules
    if rules is None:
        return
    # A copy: another sequence may get the slot before the step is sampled.
    known = sequence.token_ids.copy()
    yield RowRules(row, rules, known)
    for num_drafts in range(1, len(draft_token_ids) + 1):
        text = np.append(known, np.array(draft_token_ids[:num_drafts], dtype=known.dtype))
        yield RowRules(row + num_drafts, rules.fork(known), text)


def _ranges(counts: Indices) -> Indices:
    """Return 0 to count - 1 for each of `counts`, end to end."""
    ends = np.cumsum(counts)
    result: Indices = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return result
