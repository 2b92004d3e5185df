"""The fields of a job, or of the jobs of one answer: state, usage and times, without prompt and result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pagefleet.api.contract.messages import JobState
from pagefleet.api.gateway.answers.job_ids import created_at
from pagefleet.api.gateway.answers.shape import usage
from pagefleet.api.gateway.http.errors import api_error
from pagefleet.api.protocol.job_record import JobRecord

_STATUS: Final = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.DONE: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
    JobState.DEAD: "failed",
}
_UNFINISHED: Final = (JobState.RUNNING, JobState.QUEUED)
"""If one of several jobs has this state, all of them have."""


def job_fields(answer_id: str, records: Sequence[JobRecord]) -> dict[str, Any]:
    """Return the fields of an answer. Times are seconds since the epoch by the server's clock; several jobs
    have the earliest start and the latest end."""
    times = [record.times for record in records]
    begun = {
        name: _least(each[name] for each in times) for name in ("enqueued_at", "claimed_at", "first_token_at")
    }
    ended = [each["ended_at"] for each in times]
    errors = [record.error for record in records if record.error is not None]
    error = api_error(errors[0].to_error(answer_id)).body["error"] if errors else None
    return {
        "id": answer_id,
        "object": "job",
        "status": _STATUS[common_state(records)],
        "created": created_at(answer_id) or int(begun["enqueued_at"] or 0),
        "model": records[0].served_model,
        "lane": records[0].lane,
        "attempts": max(record.attempts for record in records),
        "usage": usage(
            sum(record.num_prompt_tokens or 0 for record in records),
            sum(sum(record.num_tokens) for record in records),
            sum(record.num_cached_tokens for record in records),
        ),
        **begun,
        "ended_at": None if None in ended else max(each for each in ended if each is not None),
        "error": error,
    }


def common_state(records: Sequence[JobRecord]) -> JobState:
    states = [record.state for record in records]
    for state in (*_UNFINISHED, JobState.FAILED, JobState.DEAD, JobState.CANCELLED):
        if state in states:
            return state
    return JobState.DONE


def _least(values: Any) -> float | None:
    return min((value for value in values if value is not None), default=None)
