"""Items of a STEP made from a LogEntry, as tests write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import LogEntry
from pagefleet.api.protocol.operation_types import StepBatch, StepReplies, StepReply, StepStatus


class StepItem(NamedTuple):
    """One choice's part of a STEP. Without an entry, it only asks for the job's flags."""

    job_id: str
    epoch: int
    choice: int
    base: int
    entry: LogEntry | None
    num_prompt_tokens: int | None = None


def step_batch(items: Sequence[StepItem]) -> StepBatch:
    """Return the batch with these items."""
    entries = [item.entry for item in items]
    return StepBatch(
        [key for item in items for key in (keys.job(item.job_id), keys.log(item.job_id))],
        [item.epoch for item in items],
        [item.choice for item in items],
        [item.base for item in items],
        [len(entry.token_ids) if entry else 0 for entry in entries],
        [entry.to_json() if entry else "" for entry in entries],
        [(at, entry.finish_reason) for at, entry in enumerate(entries, 1) if entry and entry.finish_reason],
        [
            (at, item.num_prompt_tokens, 0)
            for at, item in enumerate(items, 1)
            if item.num_prompt_tokens is not None
        ],
    )


def step_replies(replies: StepReplies) -> list[StepReply]:
    """Return the replies in one form."""
    return [StepReply(StepStatus.OK, each) if isinstance(each, int) else each for each in replies]
