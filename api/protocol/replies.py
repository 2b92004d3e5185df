"""Parses the replies of plain Redis commands: job records, open jobs, dead workers. Does no I/O itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ProtocolError
from pagefleet.api.contract.messages import Fingerprint, JobState, LogEntry
from pagefleet.api.contract.requests import invalid_request
from pagefleet.api.contract.sampling import MAX_CHOICES
from pagefleet.api.protocol.job_record import TIMES, JobRecord, LogPosition

M = TypeVar("M", bound=BaseModel)

logger = logging.getLogger(__name__)

OPEN_JOB_FIELDS: Final = (
    *("state", "owner", "epoch", "priority", "clients", "deadline"),
    *("start_by", "not_before", "refused_until", "fingerprint"),
)


STATE_FIELDS: Final = (
    "state", "queue", "num_choices", "num_prompt_tokens", "num_cached_tokens", "attempts", "error",
    "deadline",
)  # fmt: skip
"""The fields that a reader of a stream needs, in addition to the counts and ends of the choices."""

HEAD_FIELDS: Final = (
    *("state", "queue", "attempts", "tenant", "error", "num_choices"),
    *("num_prompt_tokens", "num_cached_tokens"),
    *TIMES,
    *(f"n:{choice}" for choice in range(MAX_CHOICES)),
)
"""The small fields of a job, without its request."""


class OpenJob(NamedTuple):
    """A job of an open ledger. ``state`` is None if the hash is missing or cannot be read."""

    job_id: str
    enqueued_ms: float
    state: JobState | None
    owner: str = ""
    epoch: int = 0
    priority: int = 0
    clients: tuple[str, ...] = ()
    has_deadline: bool = False
    """Whether it may end while it is queued."""
    is_gone: bool = False
    """Whether the hash is missing."""
    is_scheduled: bool = False
    """Whether it starts later, or was refused and waits."""
    is_due: bool = False
    """Whether a scheduled job's time has come."""
    waits_for: tuple[str, str] | None = None
    """Weights and tokenizer that a refused job needs."""


class DeadWorker(NamedTuple):
    """A worker without a lease. ``silent_s``: seconds since its last beat, by the server's clock."""

    worker_id: str
    silent_s: float
    num_unacked: int


def parse_open_job(job_id: str, enqueued_ms: float, row: Any, now_ms: float) -> OpenJob:
    """Parse the reply to HMGET of ``OPEN_JOB_FIELDS``."""
    try:
        state, owner, epoch, priority, clients, deadline, start_by, not_before, refused_until, fingerprint = (
            row
        )
        if not 0 <= int(priority or 0) <= 9:
            raise ValueError("priority")
        return OpenJob(
            job_id,
            enqueued_ms,
            JobState(state) if state else None,
            owner or "",
            int(epoch or 0),
            int(priority or 0),
            tuple((clients or "").split()),
            deadline is not None or start_by is not None or _is_past(refused_until, now_ms),
            not any(row),
            not_before is not None,
            _is_past(not_before, now_ms),
            None if refused_until is None else _weights(fingerprint),
        )
    except (ValueError, TypeError):
        return OpenJob(job_id, enqueued_ms, None)


def _weights(fingerprint_json: str) -> tuple[str, str]:
    fingerprint = Fingerprint.model_validate_json(fingerprint_json)
    return fingerprint.weights, fingerprint.tokenizer


def _is_past(time_ms: str | None, now_ms: float) -> bool:
    return time_ms is not None and int(time_ms) <= now_ms


def queue_read(pipeline: Any, job_id: str, with_log: bool) -> None:
    """Add the commands whose replies ``parse_record`` takes."""
    pipeline.hgetall(keys.job(job_id))
    if with_log:
        pipeline.lrange(keys.log(job_id), 0, -1)


def queue_read_after(pipeline: Any, job_id: str, position: LogPosition) -> None:
    """Add the commands whose replies ``parse_after`` takes: not the prompt or the known part of the log."""
    pipeline.hmget(keys.job(job_id), *_state_fields(position.num_choices))
    pipeline.lrange(keys.log(job_id), position.num_entries, -1)


def _state_fields(num_choices: int) -> list[str]:
    of_choices = (f"{name}:{choice}" for name in ("n", "fin") for choice in range(num_choices))
    return [*STATE_FIELDS, *of_choices]


def parse_after(job_id: str, position: LogPosition, replies: list[Any]) -> JobRecord | None:
    """Return the job's state and its log after ``position``; None if the job does not exist.

    Raises:
        ProtocolError: the hash or the log cannot be read.
    """
    values, texts = replies
    names = _state_fields(position.num_choices)
    fields = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    if not fields:
        return None
    record = _checked(JobRecord(job_id, {**fields, "request": ""}, _entries(job_id, texts), position))
    is_whole = position.num_entries == 0 and position.num_choices == record.num_choices
    return _with_whole_log(record) if is_whole else record


def parse_record(job_id: str, replies: list[Any]) -> JobRecord | None:
    """Return the job, with its log if that was read; None if it does not exist.

    Raises:
        ProtocolError: the hash or the log cannot be read.
    """
    fields, *log = replies
    if not fields:
        return None
    record = _checked(JobRecord(job_id, fields, _entries(job_id, log[0] if log else ())))
    return _with_whole_log(record) if log else record


class EndedRecord(NamedTuple):
    record: JobRecord
    result_json: str | None
    """Celery's result of the job, if it has one."""


def parse_ended(job_id: str, fields: Any, log: Any, result_json: Any) -> EndedRecord | None:
    """Return an ended job; None if it is missing, has not ended or cannot be read."""
    if any(isinstance(each, Exception) for each in (fields, log, result_json)):
        return None
    try:
        record = parse_record(job_id, [fields, log])
    except ProtocolError:
        return None
    return EndedRecord(record, result_json) if record is not None and record.state.is_final else None


def _entries(job_id: str, texts: Sequence[str]) -> list[LogEntry]:
    try:
        return [LogEntry.model_validate_json(text) for text in texts]
    except ValidationError as error:
        raise ProtocolError(
            f"The log of job {job_id} cannot be read: {invalid_request(error, with_value=False).message}",
            job_id=job_id,
        ) from None


def _checked(record: JobRecord) -> JobRecord:
    try:
        record.check()
    except (ValueError, KeyError, TypeError):
        raise ProtocolError(
            f"The hash of job {record.job_id} cannot be read.", job_id=record.job_id
        ) from None
    return record


def _with_whole_log(record: JobRecord) -> JobRecord:
    if not record.has_whole_log:
        raise ProtocolError(
            f"The log of job {record.job_id} does not contain the tokens that its hash counts.",
            job_id=record.job_id,
        )
    return record


def parse_heads(job_ids: Sequence[str], rows: Sequence[Any]) -> dict[str, JobRecord]:
    """Return jobs by id, without requests and logs. Missing and unreadable ones are left out."""
    found = {}
    for job_id, row in zip(job_ids, rows, strict=True):
        if isinstance(row, Exception):
            continue
        fields = {name: value for name, value in zip(HEAD_FIELDS, row, strict=True) if value is not None}
        record = JobRecord(job_id, {**fields, "request": ""})
        try:
            record.check()
            found[job_id] = record
        except (ValueError, KeyError, TypeError):
            continue
    return found


def parse_readable(model: type[M], names: Sequence[str], texts: Sequence[str | None]) -> list[M]:
    """Return the values that exist and can be read: the card of a newer version must not hide the others."""
    found = []
    for name, text in zip(names, texts, strict=True):
        try:
            if text is not None:
                found.append(model.model_validate_json(text))
        except ValidationError as error:
            reason = invalid_request(error, with_value=False).message
            logger.warning("the %s of %s cannot be read: %s", model.__name__, name, reason)
    return found
