"""The protocol's scripts as values: which script, which keys, which arguments, how to read the reply.

Nothing here does I/O, so that the synchronous and the asynchronous store send the very same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from pagefleet.api import keys
from pagefleet.api.messages import ErrorInfo, GenerateRequest, JobState, LogEntry, WorkerStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of one script. ``parse`` turns the server's reply into what the caller gets."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | int | float]
    parse: Callable[[Any], T]


class Submitted(NamedTuple):
    """``created`` is false where the id existed already; ``depth`` is set where the queue was full."""

    created: bool
    depth: int | None = None


class ClaimVerdict(StrEnum):
    CLAIMED = "claimed"
    MISSING = "missing"
    FINAL = "final"
    ENDED = "ended"
    ELSEWHERE = "elsewhere"
    NO_LEASE = "no-lease"


class Claim(NamedTuple):
    """What CLAIM said; the later fields are set for ``CLAIMED`` only."""

    verdict: ClaimVerdict
    epoch: int = 0
    attempt: int = 0
    request_json: str = ""
    num_tokens: tuple[int, ...] = ()


class StepItem(NamedTuple):
    """One choice's part of a STEP. ``entry`` is None where only flags are asked for or given."""

    job_id: str
    epoch: int
    choice: int
    base: int
    entry: LogEntry | None
    num_prompt_tokens: int | None = None


class StepStatus(StrEnum):
    OK = "ok"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    BEHIND = "behind"
    FENCED = "fenced"
    GONE = "gone"


class StepReply(NamedTuple):
    """``num_tokens`` is what the log holds now; for ``BEHIND``, where to send again from."""

    status: StepStatus
    num_tokens: int


class CancelVerdict(StrEnum):
    ENDED = "ended"
    FLAGGED = "flagged"
    FINAL = "final"
    MISSING = "missing"


def submit(
    job_id: str, request: GenerateRequest, *, queue: str, channel: str, max_depth: int
) -> Operation[Submitted]:
    deadline_ms = "" if request.deadline_s is None else int(request.deadline_s * 1000)
    fields: dict[str, str | int] = {
        "request": request.model_dump_json(exclude_defaults=True),
        "queue": queue,
        "priority": request.priority,
        "channel": channel,
        "num_choices": 1,
    }
    return Operation(
        "submit",
        [keys.job(job_id), keys.open_jobs(queue)],
        [job_id, max_depth, deadline_ms, *_flat(fields)],
        lambda reply: Submitted(reply[0] == "created", int(reply[1]) if reply[0] == "full" else None),
    )


def _flat(fields: Mapping[str, str | int]) -> list[str | int]:
    return [item for pair in fields.items() for item in pair]


def claim(job_id: str, worker_id: str, fingerprint_json: str) -> Operation[Claim]:
    return Operation(
        "claim",
        [keys.job(job_id), keys.lease(worker_id)],
        [job_id, worker_id, fingerprint_json],
        _parse_claim,
    )


def _parse_claim(reply: list[Any]) -> Claim:
    verdict = ClaimVerdict(reply[0])
    if verdict is not ClaimVerdict.CLAIMED:
        return Claim(verdict)
    epoch, attempt, request_json, _num_choices, *num_tokens = reply[1:]
    return Claim(verdict, int(epoch), int(attempt), request_json, tuple(map(int, num_tokens)))


def mark(worker_id: str, epochs: dict[str, int]) -> Operation[set[str]]:
    """The ids for which the fence failed."""
    job_ids = list(epochs)
    return Operation(
        "mark",
        [keys.job(job_id) for job_id in job_ids],
        [worker_id, *epochs.values()],
        lambda reply: {job_id for job_id, ours in zip(job_ids, reply, strict=True) if not int(ours)},
    )


def step(worker_id: str, items: Sequence[StepItem]) -> Operation[list[StepReply]]:
    args: list[str | int | float] = [worker_id]
    for item in items:
        entry = item.entry
        args += [
            item.job_id,
            item.epoch,
            item.choice,
            item.base,
            0 if entry is None else len(entry.token_ids),
            "" if entry is None else entry.to_json(),
            (entry.finish_reason or "") if entry is not None else "",
            "" if item.num_prompt_tokens is None else item.num_prompt_tokens,
        ]
    return Operation(
        "step",
        [key for item in items for key in (keys.job(item.job_id), keys.log(item.job_id))],
        args,
        lambda reply: [StepReply(StepStatus(status), int(n)) for status, n in reply],
    )


def end(
    job_id: str,
    worker_id: str,
    epoch: int,
    state: JobState,
    *,
    reason: str,
    error: ErrorInfo | None,
) -> Operation[str]:
    error_json = "" if error is None else error.model_dump_json(exclude_defaults=True)
    return Operation(
        "end",
        [keys.job(job_id)],
        [job_id, worker_id, epoch, state.value, reason, error_json],
        str,
    )


def release(job_id: str, worker_id: str, epoch: int) -> Operation[str]:
    return Operation("release", [keys.job(job_id)], [worker_id, epoch], str)


def callbacks(job_id: str) -> Operation[bool]:
    return Operation("callbacks", [keys.job(job_id)], [], lambda reply: bool(int(reply)))


def close(job_id: str, queue: str, ttl_s: int) -> Operation[str]:
    return Operation(
        "close",
        [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue)],
        [job_id, ttl_s * 1000],
        str,
    )


def beat(status: WorkerStatus, lease_s: float) -> Operation[None]:
    return Operation(
        "beat",
        [keys.lease(status.worker_id), keys.WORKERS],
        [status.worker_id, int(lease_s * 1000), status.model_dump_json()],
        lambda _reply: None,
    )


def cancel(job_id: str) -> Operation[CancelVerdict]:
    return Operation("cancel", [keys.job(job_id)], [job_id], CancelVerdict)


def watch(job_id: str) -> Operation[bool]:
    return Operation("watch", [keys.job(job_id)], [], lambda reply: bool(int(reply)))


def unlock(lock: str, token: str) -> Operation[bool]:
    return Operation("unlock", [lock], [token], lambda reply: bool(int(reply)))
