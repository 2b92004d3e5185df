"""The protocol's operations as values: the script, its keys and arguments, and how to parse the reply.

"Protocol line N" is the number of an operation in the protocol:

    1 SUBMIT    submit, resume                    10 BEAT     beat
    2 ENQUEUE   broker/sending.py                 11 REAP     job_store.dead_workers, unlock
    3 POP       the Celery worker                 12 BLAME    in claim
    4 CLAIM     claim                             13 SWEEP    expire, due, condemn, unlock
    5 MARK      mark                              14 AUDIT    workers, with release
    6 STEP      step                              15 CLIENT   watch, leave, and the stores' read methods
    7 END       end, and in other scripts         16 CANCEL   cancel, leave, delete
    8 FAIL, RELEASE   end, release                17 DRAIN    release, job_store.delete_lease
    9 CLOSE     callbacks, close

``delete``, ``refuse`` and ``condemn`` are additions (ops/decisions/0008). This module does no I/O, so the
synchronous and the asynchronous store send the same calls.
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
"""A client without a heartbeat for this long is dead, and its jobs are cancelled unless they are detached."""


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call of one script. ``parse`` turns the server's reply into the result."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | int | float]
    parse: Callable[[Any], T]


class Submitted(NamedTuple):
    """The reply of SUBMIT. At most one of the fields after ``created`` is set, with the reason against it."""

    created: bool
    """False if the id exists or a limit is reached."""
    depth: int | None = None
    """Open jobs of the queue, if it is full."""
    tenant_depth: int | None = None
    """Open choices of the tenant in this queue, if there are too many."""
    tenant_bytes: int | None = None
    """Stored bytes of the tenant, if the job does not fit in addition."""
    is_other: bool = False
    """The id belongs to a job with another request."""
    is_deleted: bool = False
    """The job was deleted and must not be submitted again."""

    @property
    def exists(self) -> bool:
        """Whether a job with the same id and request exists, which the caller may attach to."""
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
    """The reply of CLAIM. ``REFUSED`` sets ``reason`` and ``retry_in_s``, ``CLAIMED`` all other fields."""

    verdict: ClaimVerdict
    epoch: int = 0
    attempt: int = 0
    solo: bool = False
    """The job may have killed its last worker: do not run its first prefill together with another job's."""
    request_json: str = ""
    num_tokens: tuple[int, ...] = ()
    """Tokens in the log, by choice."""
    reason: str = ""
    retry_in_s: float = 0.0
    taken_over: bool = False
    """Its last worker died while it ran the job."""
    waited_s: float = 0.0
    """Seconds since the job was enqueued."""


class StepItem(NamedTuple):
    """One choice's part of a STEP. ``entry`` is None if there are no tokens, to read the flags."""

    job_id: str
    epoch: int
    choice: int
    base: int
    entry: LogEntry | None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int = 0
    """Set together with ``num_prompt_tokens``."""


class StepStatus(StrEnum):
    OK = "ok"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    BEHIND = "behind"
    FENCED = "fenced"
    GONE = "gone"
    UNREADABLE = "unreadable"


class StepReply(NamedTuple):
    """``num_tokens`` is the length of the log now. If ``BEHIND``, the worker sends again from there."""

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
    """Limits of SUBMIT: open jobs of the queue, the tenant's open choices in it, its stored bytes."""

    max_depth: int
    max_tenant_depth: int
    max_tenant_bytes: int = NO_LIMIT


class Charge(NamedTuple):
    """The API key that pays for a job, the tokens that it has reserved, and its limits per minute."""

    key_id: str
    num_reserved: int
    requests_per_minute: int | None
    tokens_per_minute: int

    def __str__(self) -> str:
        requests = "-" if self.requests_per_minute is None else self.requests_per_minute
        return f"{self.key_id} {self.num_reserved} {requests} {self.tokens_per_minute}"


class Schedule(NamedTuple):
    """The options of a Celery message in addition to its request."""

    not_before: int | None = None
    """The earliest start (``eta``, ``countdown``), in ms since the epoch."""
    start_by: int | None = None
    """The latest start (``expires``), in ms since the epoch."""
    canvas: str | None = None
    """Links and chain to call afterwards, as JSON."""


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
    """SUBMIT (protocol line 1): create a queued job.

    Args:
        asked: hash of the caller's request. If the id exists with another hash, the reply is ``is_other``.
        again: submit a job that the server lost, unless it was deleted.
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


def resume(submission: Operation[Submitted], letter_id: str) -> Operation[Submitted]:
    """Return the SUBMIT of a job that continues from the tokens of a dead letter."""
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
    """CLAIM (protocol line 4): take a job for a worker. Includes BLAME (line 12) if its last worker died.

    Args:
        started_json: Celery's result while the job runs; if empty, none is stored.
        ttl_s: for that result, if the job has no TTL.
        refused_ttl_s: how long a job with tokens of other weights waits before it becomes a dead letter.
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
    """MARK (protocol line 5): make jobs suspects before their first prefill.

    Args:
        epochs: by job id.

    Returns:
        The ids of the jobs that the worker no longer owns.
    """
    job_ids = list(epochs)
    return Operation(
        "mark",
        [keys.suspects(worker_id), *(keys.job(job_id) for job_id in job_ids)],
        [worker_id, *(item for pair in epochs.items() for item in pair)],
        lambda reply: {job_id for job_id, ours in zip(job_ids, reply, strict=True) if not int(ours)},
    )


def step(worker_id: str, items: Sequence[StepItem]) -> Operation[list[StepReply]]:
    """STEP (protocol line 6): append and publish tokens. The replies are in the order of the items."""
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
    """END and FAIL (protocol lines 7 and 8) by the owner: "ended", "fenced" or "missing"."""
    error_json = "" if error is None else error.model_dump_json(exclude_defaults=True)
    return Operation(
        "end",
        [keys.job(job_id)],
        [job_id, worker_id, epoch, state.value, reason, error_json],
        str,
    )


def release(job_id: str, worker_id: str, epoch: int) -> Operation[str]:
    """RELEASE (protocol line 8): queue a running job again: "released", "fenced" or "missing"."""
    return Operation("release", [keys.job(job_id)], [worker_id, epoch, job_id], str)


def callbacks(job_id: str) -> Operation[bool]:
    """CLOSE (protocol line 9), the marker: true for the one caller that may run the Celery callbacks."""
    return Operation("callbacks", [keys.job(job_id)], [], lambda reply: bool(int(reply)))


def close(job_id: str, queue: str, ttl_s: int, dead_ttl_s: int) -> Operation[str]:
    """CLOSE (protocol line 9), last part: "closed", "missing" or "open", if the job is not final."""
    return Operation(
        "close",
        [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.result(job_id)],
        [job_id, ttl_s * 1000, dead_ttl_s * 1000],
        str,
    )


def beat(status: WorkerStatus, lease_s: float) -> Operation[bool]:
    """BEAT (protocol line 10): renew a worker's lease. False if the card of its model is missing."""
    return Operation(
        "beat",
        [keys.lease(status.worker_id), keys.WORKERS, keys.model(status.model)],
        [status.worker_id, int(lease_s * 1000), status.model_dump_json()],
        lambda reply: bool(int(reply)),
    )


def cancel(job_id: str, *, only_queued: bool = False) -> Operation[CancelVerdict]:
    """CANCEL (protocol line 16). With ``only_queued`` the reply for a running job is ``RUNNING``."""
    return Operation("cancel", [keys.job(job_id)], [job_id, int(only_queued)], CancelVerdict)


def delete(job_id: str, queue: str, ttl_s: int) -> Operation[DeleteVerdict]:
    """DELETE: remove a job; one that has not ended is cancelled first (protocol line 16)."""
    touched = [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.DEAD, keys.result(job_id)]
    return Operation(
        "delete",
        [*touched, keys.deleted(job_id)],
        [job_id, ttl_s * 1000],
        DeleteVerdict,
    )


def expire(job_id: str) -> Operation[bool]:
    """SWEEP (protocol line 13): end a queued job that is past its deadline or has waited too long for its
    weights. True if this call ended it."""
    return Operation("expire", [keys.job(job_id), keys.DEAD], [job_id], lambda reply: reply == "ended")


def due(job_id: str, *, has_worker: bool = False) -> Operation[bool]:
    """SWEEP (protocol line 13): make a scheduled or refused job due if its time has come.

    Args:
        has_worker: a worker has the weights that a refused job waits for, so it is due now.

    Returns:
        Whether this call made it due; the caller then sends its message.
    """
    return Operation("due", [keys.job(job_id)], [int(has_worker)], lambda reply: bool(int(reply)))


def refuse(job_id: str, failure_json: str, ttl_s: int) -> Operation[bool]:
    """REFUSE: store a failed Celery result. False if the id has a job or a final result."""
    return Operation(
        "refuse",
        [keys.job(job_id), keys.result(job_id)],
        [failure_json, ttl_s * 1000],
        lambda reply: bool(int(reply)),
    )


def watch(job_id: str, client_id: str = "") -> Operation[bool]:
    """ATTACH (protocol line 15): publish events on the job's own channel too. False if it is missing."""
    return Operation("watch", [keys.job(job_id)], [client_id], lambda reply: bool(int(reply)))


def leave(job_id: str, client_id: str) -> Operation[CancelVerdict]:
    """CANCEL by the last reader (protocol lines 15 and 16).

    ``READ``: other readers are alive, or the job is detached.
    """
    return Operation("leave", [keys.job(job_id)], [job_id, client_id], CancelVerdict)


def condemn(
    job_id: str, queue: str, error: ErrorInfo, dead_ttl_s: int, *, only_missing: bool
) -> Operation[str]:
    """CONDEMN: make an unreadable job a dead letter: "dead", "missing", "no-hash", "known" or "kept"."""
    return Operation(
        "condemn",
        [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.DEAD],
        [job_id, error.model_dump_json(exclude_defaults=True), dead_ttl_s * 1000, int(only_missing)],
        str,
    )


def unlock(lock: str, token: str) -> Operation[bool]:
    """Release a lock (protocol lines 11 and 13) if it still has this token; otherwise false."""
    return Operation("unlock", [lock], [token], lambda reply: bool(int(reply)))
