"""JobStore: every state change of a job is one method here and one script in ``scripts/``.

The docstrings name the line of the protocol that a method is. It knows Redis and the wire contract;
it does not know Celery, models or engines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import redis

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ProtocolError, StorageFull
from pagefleet.api.contract.messages import ErrorInfo, GenerateRequest, JobState, ModelCard, WorkerStatus
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.connection import is_unreadable, redis_errors
from pagefleet.api.protocol.operations import (
    NO_SCHEDULE,
    CancelVerdict,
    Claim,
    ClaimVerdict,
    DeleteVerdict,
    Limits,
    Operation,
    Schedule,
    StepItem,
    StepReply,
    Submitted,
)
from pagefleet.api.protocol.producer_store import ProducerStore
from pagefleet.api.protocol.replies import (
    OPEN_JOB_FIELDS,
    DeadWorker,
    OpenJob,
    open_job,
)
from pagefleet.api.protocol.scripts import load_script

T = TypeVar("T")

_MAX_UNREADABLE: Final = 100
_UNREADABLE_TTL_S: Final = 86400


class JobStore(ProducerStore):
    """The state of all jobs on one Redis server, for threads. Every method is safe to repeat.

    All methods raise :class:`~pagefleet.api.contract.errors.RedisUnavailable` if the server does not answer.
    """

    def submit(
        self,
        job_id: str,
        request: GenerateRequest,
        *,
        queue: str,
        channel: str,
        limits: Limits,
        client_id: str = "",
        schedule: Schedule = NO_SCHEDULE,
    ) -> Submitted:
        """Line 1, SUBMIT: queued, unless the queue is too deep or the id exists."""
        return self.run(
            operations.submit(
                job_id,
                request,
                queue=queue,
                channel=channel,
                limits=limits,
                client_id=client_id,
                schedule=schedule,
            )
        )

    def claim(
        self,
        job_ids: Sequence[str],
        worker_id: str,
        fingerprint_json: str,
        started: Mapping[str, str] | None = None,
    ) -> list[Claim]:
        """Line 4, CLAIM: takes jobs for a worker, in one round trip.

        Args:
            started: by job, Celery's result from now on, as JSON.
        """
        ttls, started = (self.settings.result_ttl_s, self.settings.refused_ttl_s), started or {}
        calls = [
            operations.claim(job_id, worker_id, fingerprint_json, started.get(job_id, ""), *ttls)
            for job_id in job_ids
        ]
        return self.run_many(calls, unreadable=Claim(ClaimVerdict.UNREADABLE))

    def mark(self, worker_id: str, epochs: dict[str, int]) -> set[str]:
        """Line 5, MARK: before a first prefill reaches the device. Returns the jobs lost to the fence."""
        return self.run(operations.mark(worker_id, epochs))

    def step(self, worker_id: str, items: Sequence[StepItem]) -> list[StepReply]:
        """Line 6, STEP: appends and publishes what the last steps produced, for all jobs at once."""
        return self.run(operations.step(worker_id, items))

    def end(
        self,
        job_id: str,
        worker_id: str,
        epoch: int,
        state: JobState,
        *,
        reason: str = "",
        error: ErrorInfo | None = None,
    ) -> str:
        """Lines 7 and 8, END and FAIL, by the owner: a final state other than done."""
        return self.run(operations.end(job_id, worker_id, epoch, state, reason=reason, error=error))

    def release(self, job_id: str, worker_id: str, epoch: int) -> str:
        """Line 8, RELEASE: gives the job back; the caller returns its message to the queue."""
        return self.run(operations.release(job_id, worker_id, epoch))

    def condemn(self, job_id: str, queue: str, *, only_missing: bool = False) -> bool:
        """A job that nobody can read leaves its ledger; it becomes a dead letter if it is a hash at all.

        Args:
            only_missing: only where there is no hash, which its client may have written again by now.

        Returns:
            Whether this call found it: one of several callers counts it.
        """
        error = ErrorInfo(
            code=ProtocolError.code, message="What the server holds of this job cannot be read."
        )
        ttl_s = self.settings.dead_letter_ttl_s
        verdict = self.run(operations.condemn(job_id, queue, error, ttl_s, only_missing=only_missing))
        return verdict not in ("known", "kept")

    def claim_callbacks(self, job_id: str) -> bool:
        """Line 9, CLOSE, the marker: true for the one caller that may run the job's links and chain."""
        return self.run(operations.callbacks(job_id))

    def close(self, job_id: str, queue: str) -> str:
        """Line 9, CLOSE, last part: out of the ledger; hash and log may expire from now on."""
        return self.run(
            operations.close(job_id, queue, self.settings.result_ttl_s, self.settings.dead_letter_ttl_s)
        )

    def beat(self, status: WorkerStatus, lease_s: float) -> bool:
        """Line 10, BEAT: the worker's lease runs anew. False where its model's card is gone."""
        return self.run(operations.beat(status, lease_s))

    def is_full(self) -> bool:
        """Whether the server is at its memory limit: nothing new should be taken off a queue then, since
        the broker could not write down who has it."""
        try:
            with redis_errors(self.settings.url):
                self.redis.set(keys.PROBE, "1", px=1000)
        except StorageFull:
            return True
        return False

    def leave(self, worker_id: str) -> None:
        """Line 17, DRAIN, last part: the lease is given up. The worker stays known as a tombstone."""
        with redis_errors(self.settings.url):
            self.redis.delete(keys.lease(worker_id))

    def is_alive(self, worker_id: str) -> bool:
        """Whether the worker's lease exists."""
        with redis_errors(self.settings.url):
            return bool(self.redis.exists(keys.lease(worker_id)))

    def dead_workers(self) -> list[DeadWorker]:
        """Line 11, REAP, the question: known workers without a lease, and what they left behind."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=False)
            pipeline.time()
            pipeline.zrange(keys.WORKERS, 0, -1, withscores=True)
            (seconds, _micros), known = pipeline.execute()
            pipeline = self.redis.pipeline(transaction=False)
            for worker_id, _beat_ms in known:
                pipeline.exists(keys.lease(worker_id))
                pipeline.hlen(keys.unacked(worker_id)["unacked_key"])
            replies = pipeline.execute()
        left_behind = zip(known, replies[::2], replies[1::2], strict=True)
        return [
            DeadWorker(worker_id, seconds - beat_ms / 1000, num_unacked)
            for (worker_id, beat_ms), alive, num_unacked in left_behind
            if not alive
        ]

    def open_jobs(self, queue: str, first: int = 0, limit: int = 1000) -> list[OpenJob]:
        """Line 13, SWEEP, the question: the jobs of a queue that are not closed, the oldest first."""
        with redis_errors(self.settings.url):
            ledger = self.redis.zrange(keys.open_jobs(queue), first, first + limit - 1, withscores=True)
            pipeline = self.redis.pipeline(transaction=False)
            pipeline.time()
            for job_id, _enqueued_ms in ledger:
                pipeline.hmget(keys.job(job_id), *OPEN_JOB_FIELDS)
            # A key of another type is as good as none.
            (seconds, micros), *rows = pipeline.execute(raise_on_error=False)
        now_ms = seconds * 1000 + micros / 1000
        return [
            open_job(job_id, enqueued_ms, row, now_ms)
            for (job_id, enqueued_ms), row in zip(ledger, rows, strict=True)
        ]

    def forget_worker(self, worker_id: str) -> None:
        """Line 11, REAP, the end of a tombstone."""
        with redis_errors(self.settings.url):
            self.redis.zrem(keys.WORKERS, worker_id)

    def try_lock(self, lock: str, token: str, ttl_s: float) -> bool:
        with redis_errors(self.settings.url):
            return bool(self.redis.set(lock, token, nx=True, px=int(ttl_s * 1000)))

    def unlock(self, lock: str, token: str) -> bool:
        """Only the lock that ``token`` took; false where it had expired."""
        return self.run(operations.unlock(lock, token))

    def are_gone(self, client_ids: Sequence[str]) -> list[bool]:
        """Line 13, SWEEP, the question: which clients have not been heard of for their lease."""
        if not client_ids:
            return []
        with redis_errors(self.settings.url):
            return [value is None for value in self.redis.mget([keys.client(each) for each in client_ids])]

    def cancel(self, job_id: str, *, only_queued: bool = False) -> CancelVerdict:
        """Line 16, CANCEL: after ``ENDED`` the caller must close the job.

        Args:
            only_queued: not one that runs, nor one that is claimed at this very moment.
        """
        return self.run(operations.cancel(job_id, only_queued=only_queued))

    def delete(self, job_id: str, queue: str) -> DeleteVerdict:
        """Removes what the server knows of a job; after ``ENDED`` the caller must close the job."""
        return self.run(operations.delete(job_id, queue, self.settings.result_ttl_s))

    def expire(self, job_id: str) -> bool:
        """Line 13, SWEEP: ends a job that waited past its deadline, or for its weights for too long; after
        ``True`` it must be closed."""
        return self.run(operations.expire(job_id))

    def due(self, job_id: str, *, is_wanted: bool = False) -> bool:
        """Line 13, SWEEP: the time of a job that was to begin later, or was refused, has come; after ``True``
        send it."""
        return self.run(operations.due(job_id, is_wanted=is_wanted))

    def refuse(self, job_id: str, failure_json: str) -> bool:
        """Stores a failed result for an id that has no job; false where it has one, or a final result."""
        return self.run(operations.refuse(job_id, failure_json, self.settings.result_ttl_s))

    def keep_unreadable(self, entry_json: str) -> None:
        """Keeps what came over a queue and cannot be answered, for an operator: a day, the newest hundred."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.lpush(keys.UNREADABLE, entry_json)
            pipeline.ltrim(keys.UNREADABLE, 0, _MAX_UNREADABLE - 1)
            pipeline.expire(keys.UNREADABLE, _UNREADABLE_TTL_S)
            pipeline.execute()

    def dead_letters(self) -> list[str]:
        """The ids of the jobs that were given up and are still kept, the oldest first."""
        with redis_errors(self.settings.url):
            job_ids = self.redis.zrange(keys.DEAD, 0, -1)
            pipeline = self.redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.exists(keys.job(job_id))
            kept = pipeline.execute()
            gone = [job_id for job_id, exists in zip(job_ids, kept, strict=True) if not exists]
            if gone:
                # A monitor's user may not; somebody else tidies up.
                with contextlib.suppress(redis.exceptions.NoPermissionError):
                    self.redis.zrem(keys.DEAD, *gone)
        return [job_id for job_id in job_ids if job_id not in set(gone)]

    def publish_card(self, card: ModelCard) -> None:
        """Makes a model known to producers, from now on and after its last worker is gone."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.set(keys.model(card.name), card.model_dump_json())
            pipeline.sadd(keys.MODELS, card.name)
            pipeline.execute()

    def remove_card(self, name: str) -> bool:
        """Makes a model unknown; false where it was."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.delete(keys.model(name))
            pipeline.srem(keys.MODELS, name)
            return any(pipeline.execute())

    def run_many(self, calls: Sequence[Operation[T]], unreadable: T) -> list[T]:
        """Runs several scripts in one round trip; not atomic together. ``unreadable`` stands for the reply of
        one that found a key or a field that it could not read."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=False)
            for call in calls:
                pipeline.evalsha(load_script(call.script).sha, len(call.keys), *call.keys, *call.args)
            replies = pipeline.execute(raise_on_error=False)
            return [
                self.run(call)
                if isinstance(reply, redis.exceptions.NoScriptError)
                else unreadable
                if is_unreadable(reply)
                else call.parse(_raised(reply))
                for call, reply in zip(calls, replies, strict=True)
            ]


def _raised(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply
