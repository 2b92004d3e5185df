"""The protocol's operations as values: the script, its keys and arguments, and how to parse the reply.

"Protocol line N" is the number of an operation in the protocol:

    1 SUBMIT    submit, resume                    10 BEAT     beat
    2 ENQUEUE   in submit, broker/sending.py      11 REAP     job_store.dead_workers, unlock
    3 POP       kombu, workers/queue/backlog.py  12 BLAME    in claim
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

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import ErrorInfo, GenerateRequest, JobState, WorkerStatus
from pagefleet.api.contract.stored_size import reserved_bytes
from pagefleet.api.protocol.operation_types import (
    NO_SCHEDULE,
    CancelVerdict,
    Charge,
    Claim,
    ClaimVerdict,
    DeleteVerdict,
    Limits,
    Operation,
    QueueMessage,
    Schedule,
    StepBatch,
    StepReplies,
    StepReply,
    StepStatus,
    Submitted,
)


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
    message: QueueMessage | None = None,
    request_json: str | None = None,
) -> Operation[Submitted]:
    """SUBMIT (protocol line 1): create a queued job.

    Args:
        message: sent together with the job (line 2, ENQUEUE). None if the caller sends it, or if there is
            one already.
        request_json: the request as JSON, if the caller has it already.
        asked: hash of the caller's request. If the id exists with another hash, the reply is ``is_other``.
        again: submit a job that the server lost, unless it was deleted.
    """
    if request_json is None:
        request_json = request.model_dump_json(exclude_defaults=True)
    deadline_ms = "" if request.deadline_s is None else int(request.deadline_s * 1000)
    fields: dict[str, str | int] = {
        "request": request_json,
        "queue": queue,
        "priority": request.priority,
        "channel": channel,
        "clients": "" if request.is_detached else client_id,
    }
    if request.result_ttl_s is not None:
        fields["ttl"] = request.result_ttl_s * 1000
    if request.tenant is not None:
        fields["tenant"] = request.tenant
    if charge is not None:
        fields["charge"] = str(charge)
    fields |= {name: value for name, value in schedule._asdict().items() if value is not None}
    touched = [keys.job(job_id), keys.log(job_id), keys.open_jobs(queue), keys.recent_jobs(request.tenant)]
    touched += [keys.deleted(job_id), queue if message is None else message.list_name]
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
            *(("", "", "") if message is None else message[1:]),
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


def step(worker_id: str, batch: StepBatch) -> Operation[StepReplies]:
    """STEP (protocol line 6): append and publish tokens. The replies are in the order of the items."""
    # One argument for all numbers: a server takes about as long for ten arguments as for a command.
    columns = {
        "epochs": batch.epochs,
        "choices": batch.choices,
        "bases": batch.bases,
        "counts": batch.counts,
        "reasons": batch.reasons,
        "accepted": batch.accepted,
    }
    return Operation("step", batch.keys, [worker_id, json.dumps(columns), *batch.entries], _parse_step)


def _parse_step(reply: list[Any]) -> StepReplies:
    return [each if type(each) is int else StepReply(StepStatus(each[0]), each[1]) for each in reply]


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
