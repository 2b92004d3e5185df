"""Items of a STEP made from a LogEntry, as tests write them."""

from __future__ import annotations

from pagefleet.api.contract.messages import LogEntry
from pagefleet.api.protocol.operation_types import StepItem


def step_item(
    job_id: str, epoch: int, choice: int, base: int, entry: LogEntry | None, accepted: int | None = None
) -> StepItem:
    """Return the item that sends an entry; without one, it only asks for the job's flags."""
    if entry is None:
        return StepItem(job_id, epoch, choice, base, 0, "")
    num_tokens, reason = len(entry.token_ids), entry.finish_reason
    return StepItem(job_id, epoch, choice, base, num_tokens, entry.to_json(), reason, accepted)
