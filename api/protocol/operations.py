"""The protocol's scripts as values: which script, which keys, which arguments, how to read the reply.

Nothing here does I/O, so that the synchronous and the asynchronous store send the very same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import ErrorInfo, GenerateRequest, JobState, LogEntry, WorkerStatus
from pagefleet.api.contract.stored_size import reserved_bytes

T = TypeVar("T")

CLIENT_LEASE_S: Final = 10.0
"""A client without a heartbeat for this long is gone, and so are its jobs unless they are detached."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of one script. ``parse`` turns the server's reply into what the caller gets."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | int | float]
    parse: Callable[[Any], T]


class Submitted(NamedTuple):
    """``created`` is false where the id existed already or a limit was reached; ``depth`` is set where the
    queue was full, ``tenant_depth``, in choices, where the tenant's share of it was, and
    ``tenant_bytes`` where what the tenant has stored leaves no room. ``is_other``: the id is that of
    another request; ``is_deleted``: the job was deleted, and must not be sent again."""

    created: bool
    depth: int | None = None
    tenant_depth: int | None = None
    tenant_bytes: int | None = None
    is_other: bool = False
    is_deleted: bool = False

    @property
    def exists(self) -> bool:
        return self == Submitted(created=False)


class ClaimVerdict(StrEnum):
    CLAIMED = "claimed"
    MISSING = "missing"
    FINAL = "final"
    EARLY = "early"
    ENDED = "ended"
    ELSEWHERE = "elsewhere"
    NO_LEASE = "no-lease"
    REFUSED = "refused"
    UNREADABLE = "unreadable"


class Claim(NamedTuple):
    """What CLAIM said; ``reason`` and ``retry_in_s`` are set for ``REFUSED``, the others for ``CLAIMED``.

    ``solo``: the job may be what its last worker died of; no other job's first prefill beside its own.
    ``taken_over``: its last worker died with it. ``waited_s``: since it was enqueued.
    """

    verdict: ClaimVerdict
    epoch: int = 0
    attempt: int = 0
    solo: bool = False
    request_json: str = ""
    num_tokens: tuple[int, ...] = ()
    reason: str = ""
    retry_in_s: float = 0.0
    taken_over: bool = False
    waited_s: float = 0.0


class StepItem(NamedTuple):
    """One choice's part of a STEP. ``entry`` is None where only flags are asked for or given."""

    job_id: str
    epoch: int
    choice: int
    base: int
    entry: LogEntry | None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    """Goes with ``num_prompt_tokens``."""


class StepStatus(StrEnum):
    OK = "ok"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    BEHIND = "behind"
    FENCED = "fenced"
    GONE = "gone"
    UNREADABLE = "unreadable"


class StepReply(NamedTuple):
    """``num_tokens`` is what the log holds now; for ``BEHIND``, where to send again from."""

    status: StepStatus
    num_tokens: int


class CancelVerdict(StrEnum):
    ENDED = "ended"
    FLAGGED = "flagged"
    RUNNING = "running"
    FINAL = "final"
    MISSING = "missing"
    READ = "read"


class DeleteVerdict(StrEnum):
    DELETED = "deleted"
    ENDED = "ended"
    FLAGGED = "flagged"
    MISSING = "missing"


NO_LIMIT: Final = 10**15


class Limits(NamedTuple):
    """How many open jobs a queue may hold, how many choices those of one tenant may have, and how many
    bytes all its jobs may take."""

    max_depth: int
    max_tenant_depth: int
    max_tenant_bytes: int = NO_LIMIT


class Charge(NamedTuple):
    """Who pays for a job: an API key, how many tokens of its minute are reserved, and its limits."""

    key_id: str
    num_reserved: int
    requests_per_minute: int | None
    tokens_per_minute: int

    def __str__(self) -> str:
        requests = "-" if self.requests_per_minute is None else self.requests_per_minute
        return f"{self.key_id} {self.num_reserved} {requests} {self.tokens_per_minute}"


class Schedule(NamedTuple):
    """What a Celery message asks for beside its request: when to begin, at the earliest and at the latest (ms
    since the epoch), and what to call afterwards (JSON)."""

    not_before: int | None = None
    start_by: int | None = None
    canvas: str | None = None


NO_SCHEDULE: Final = Schedule()


def submit(
    job_id: str,
    request: GenerateRequest,
    *,
    queue: str,
    channel: str,
    limits: Limits,
    client_id: str = "",
    charge: Charge | None = None,
    schedule: Schedule = NO_SCHEDULE,
    asked: str = "",
    again: bool = False,
) -> Operation[Submitted]:
    """SUBMIT.

    Args:
        asked: hash of what the caller asked for. A job with that id and another hash is not attached to.
        again: sends a job that the server lost; not one that was deleted.
    """
    request_json = request.model_dump_json(exclude_defaults=True)
    deadline_ms = "" if request.deadline_s is None else int(request.deadline_s * 1000)
    fields: dict[str, str | int] = {
        "request": request_json,
        "queue": queue,
        "priority": request.priority,
        "channel": channel,
        "clients": "" if request.lives_alone else client_id,
    }
    if request.result_ttl_s is not None:
        fields["ttl"] = request.result_ttl_s * 1000
    if request.tenant is not None:
        fields["tenant"] = request.tenant
    if charge is not None:
        fields["charge"] = str(charge)
    fields |= {name: value for name, value in schedule._asdict().items() if value is not None}
    touched = [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.recent_jobs(request.tenant)]
    touched.append(keys.deleted(job_id))
    if request.tenant is not None:
        tenant = request.tenant
        touched += [keys.tenant_jobs(queue, tenant), keys.stored_jobs(tenant), keys.stored_bytes(tenant)]
    return Operation(
        "submit",
        touched,
        [
            job_id,
            limits.max_depth,
            limits.max_tenant_depth,
            deadline_ms,
            int(again),
            asked,
            request.sampling.n,
            limits.max_tenant_bytes,
            reserved_bytes(request, len(request_json.encode())),
            *_flat(fields),
        ],
        _parse_submitted,
    )


def resumed(submission: Operation[Submitted], letter_id: str) -> Operation[Submitted]:
    """SUBMIT of a job that goes on with the tokens of a dead letter."""
    return replace(submission, args=[*submission.args, "resumed", letter_id])


def _parse_submitted(reply: list[Any]) -> Submitted:
    verdict, *depth = reply
    return Submitted(
        verdict == "created",
        int(depth[0]) if verdict == "full" else None,
        int(depth[0]) if verdict == "tenant-full" else None,
        int(depth[0]) if verdict == "tenant-bytes" else None,
        is_other=verdict == "other",
        is_deleted=verdict == "deleted",
    )


def _flat(fields: Mapping[str, str | int]) -> list[str | int]:
    return [item for pair in fields.items() for item in pair]


def claim(
    job_id: str,
    worker_id: str,
    fingerprint_json: str,
    started_json: str = "",
    ttl_s: int = 3600,
    refused_ttl_s: int = 86400,
) -> Operation[Claim]:
    """CLAIM.

    Args:
        started_json: Celery's result while the job runs; without it none is stored.
        refused_ttl_s: how long a job that was begun with other weights waits before it is a dead letter.
    """
    return Operation(
        "claim",
        [keys.job(job_id), keys.lease(worker_id), keys.DEAD, keys.result(job_id)],
        [job_id, worker_id, fingerprint_json, started_json, ttl_s * 1000, refused_ttl_s * 1000],
        _parse_claim,
    )


def _parse_claim(reply: list[Any]) -> Claim:
    verdict = ClaimVerdict(reply[0])
    if verdict is ClaimVerdict.REFUSED:
        return Claim(verdict, reason=reply[1], retry_in_s=int(reply[2]) / 1000)
    if verdict is not ClaimVerdict.CLAIMED:
        return Claim(verdict)
    epoch, attempt, solo, taken_over, waited_ms, request_json, _num_choices, *num_tokens = reply[1:]
    return Claim(
        verdict,
        int(epoch),
        int(attempt),
        bool(int(solo)),
        request_json,
        tuple(map(int, num_tokens)),
        taken_over=bool(int(taken_over)),
        waited_s=int(waited_ms) / 1000,
    )


def mark(worker_id: str, epochs: dict[str, int]) -> Operation[set[str]]:
    """The ids for which the fence failed."""
    job_ids = list(epochs)
    return Operation(
        "mark",
        [keys.suspects(worker_id), *(keys.job(job_id) for job_id in job_ids)],
        [worker_id, *(item for pair in epochs.items() for item in pair)],
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
            item.num_cached_tokens,
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
    return Operation("release", [keys.job(job_id)], [worker_id, epoch, job_id], str)


def callbacks(job_id: str) -> Operation[bool]:
    return Operation("callbacks", [keys.job(job_id)], [], lambda reply: bool(int(reply)))


def close(job_id: str, queue: str, ttl_s: int, dead_ttl_s: int) -> Operation[str]:
    return Operation(
        "close",
        [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.result(job_id)],
        [job_id, ttl_s * 1000, dead_ttl_s * 1000],
        str,
    )


def beat(status: WorkerStatus, lease_s: float) -> Operation[bool]:
    """False where the server has no card of the worker's model."""
    return Operation(
        "beat",
        [keys.lease(status.worker_id), keys.WORKERS, keys.model(status.model)],
        [status.worker_id, int(lease_s * 1000), status.model_dump_json()],
        lambda reply: bool(int(reply)),
    )


def cancel(job_id: str, *, only_queued: bool = False) -> Operation[CancelVerdict]:
    """``RUNNING`` comes only where ``only_queued`` is asked for: nothing was changed."""
    return Operation("cancel", [keys.job(job_id)], [job_id, int(only_queued)], CancelVerdict)


def delete(job_id: str, queue: str, ttl_s: int) -> Operation[DeleteVerdict]:
    touched = [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.DEAD, keys.result(job_id)]
    return Operation(
        "delete",
        [*touched, keys.deleted(job_id)],
        [job_id, ttl_s * 1000],
        DeleteVerdict,
    )


def expire(job_id: str) -> Operation[bool]:
    """True where the job waited past its deadline, or too long for its weights, and ended by this call."""
    return Operation("expire", [keys.job(job_id), keys.DEAD], [job_id], lambda reply: reply == "ended")


def due(job_id: str, *, is_wanted: bool = False) -> Operation[bool]:
    """True where the job's time has come by this call; a refused one's comes at once if it ``is_wanted``."""
    return Operation("due", [keys.job(job_id)], [int(is_wanted)], lambda reply: bool(int(reply)))


def refuse(job_id: str, failure_json: str, ttl_s: int) -> Operation[bool]:
    """False where there is such a job, or a final result."""
    return Operation(
        "refuse",
        [keys.job(job_id), keys.result(job_id)],
        [failure_json, ttl_s * 1000],
        lambda reply: bool(int(reply)),
    )


def watch(job_id: str, client_id: str = "") -> Operation[bool]:
    return Operation("watch", [keys.job(job_id)], [client_id], lambda reply: bool(int(reply)))


def leave(job_id: str, client_id: str) -> Operation[CancelVerdict]:
    """``READ`` where somebody else still reads it, or where it needs no reader."""
    return Operation("leave", [keys.job(job_id)], [job_id, client_id], CancelVerdict)


def condemn(
    job_id: str, queue: str, error: ErrorInfo, dead_ttl_s: int, *, only_missing: bool
) -> Operation[str]:
    return Operation(
        "condemn",
        [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.DEAD],
        [job_id, error.model_dump_json(exclude_defaults=True), dead_ttl_s * 1000, int(only_missing)],
        str,
    )


def unlock(lock: str, token: str) -> Operation[bool]:
    return Operation("unlock", [lock], [token], lambda reply: bool(int(reply)))
