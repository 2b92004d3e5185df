"""The calls that the actors make, by job and worker number: the product's own operations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from protocol.world import JOB_IDS, NUM_TOKENS, WORKER_IDS
from step_items import StepItem, step_batch, step_replies

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import Fingerprint, GenerateRequest, JobState, LogEntry, WorkerStatus
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.rate_limit import take
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.operation_types import Charge, Limits, Operation

QUEUE: Final = "m.interactive"
TENANT: Final = "t"
_REQUEST: Final = GenerateRequest(model="m", prompt="Hello", deadline_s=10.0**6, tenant=TENANT)
_LIMITS: Final = Limits(max_depth=10, max_tenant_depth=10)
CHARGE: Final = Charge("k", num_reserved=5, requests_per_minute=None, tokens_per_minute=1000)
_LEASE_S: Final = 60.0
_TTL_S, _DEAD_TTL_S = 60, 600


def result_meta(status: str) -> str:
    """As much of Celery's result as matters here."""
    return json.dumps({"status": status})


def resubmit(job: int) -> Operation[Any]:
    return submit(job, again=True)


def client_id(job: int) -> str:
    return f"client-{JOB_IDS[job]}"


def submit(job: int, *, again: bool = False) -> Operation[Any]:
    me = client_id(job)
    return operations.submit(
        JOB_IDS[job],
        _REQUEST,
        queue=QUEUE,
        channel=keys.reply_channel(me),
        limits=_LIMITS,
        client_id=me,
        charge=CHARGE,
        again=again,
    )


def reserve() -> Operation[Any]:
    """What a gateway does before it submits a job."""
    key = ApiKey.model_construct(key_id=CHARGE.key_id, tokens_per_minute=CHARGE.tokens_per_minute)
    return take(key, 1, CHARGE.num_reserved)


def claim(worker: int, job: int, weights: str = "w") -> Operation[Any]:
    started = result_meta("STARTED")
    fingerprint = Fingerprint(weights=weights, tokenizer="t", dtype="d", backend="b", version="v")
    return operations.claim(JOB_IDS[job], WORKER_IDS[worker], fingerprint.model_dump_json(), started, _TTL_S)


def mark(worker: int, job: int, epoch: int) -> Operation[Any]:
    return operations.mark(WORKER_IDS[worker], {JOB_IDS[job]: epoch})


def step(worker: int, job: int, epoch: int, base: int, made: int) -> Operation[Any]:
    """Tokens ``base`` to ``made``; a token's value is its index."""
    ids = list(range(base, made))
    reason = "length" if made == NUM_TOKENS else None
    entry = LogEntry(offset=base, token_ids=ids, texts=["x"] * len(ids), finish_reason=reason)
    return _step(worker, StepItem(JOB_IDS[job], epoch, 0, base, entry))


def ask(worker: int, job: int, epoch: int) -> Operation[Any]:
    """A STEP that brings nothing: does it pass the fence?"""
    return _step(worker, StepItem(JOB_IDS[job], epoch, 0, 0, None))


def _step(worker: int, item: StepItem) -> Operation[Any]:
    call = operations.step(WORKER_IDS[worker], step_batch([item]))
    return replace(call, parse=lambda reply: step_replies(call.parse(reply)))


def end(worker: int, job: int, epoch: int, state: str) -> Operation[Any]:
    reason = "cancelled" if state == "C" else "deadline"
    return operations.end(JOB_IDS[job], WORKER_IDS[worker], epoch, JobState(state), reason=reason, error=None)


def release(worker: int, job: int, epoch: int) -> Operation[Any]:
    return operations.release(JOB_IDS[job], WORKER_IDS[worker], epoch)


def close(job: int) -> Operation[Any]:
    return operations.close(JOB_IDS[job], QUEUE, _TTL_S, _DEAD_TTL_S)


def beat(worker: int) -> Operation[Any]:
    status = WorkerStatus(worker_id=WORKER_IDS[worker], model="m", host="h", pid=1, started_at=0.0)
    return operations.beat(status, _LEASE_S)


def cancel(job: int) -> Operation[Any]:
    return operations.cancel(JOB_IDS[job])


def revoke(job: int) -> Operation[Any]:
    return operations.cancel(JOB_IDS[job], only_queued=True)


def delete(job: int) -> Operation[Any]:
    return operations.delete(JOB_IDS[job], QUEUE, _TTL_S)


def due(job: int, has_worker: bool) -> Operation[Any]:
    return operations.due(JOB_IDS[job], has_worker=has_worker)


def expire(job: int) -> Operation[Any]:
    return operations.expire(JOB_IDS[job])
