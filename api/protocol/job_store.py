"""JobStore: every state change of a job is one method here and one script in ``scripts/``.

The docstrings name the line of the protocol that a method implements. Does not know Celery or engines.
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
from pagefleet.api.protocol.operation_types import (
    NO_SCHEDULE,
    CancelVerdict,
    Claim,
    ClaimVerdict,
    DeleteVerdict,
    JobClosing,
    Limits,
    Operation,
    Schedule,
    StepBatch,
    StepReplies,
    Submitted,
)
from pagefleet.api.protocol.producer_store import ProducerStore
from pagefleet.api.protocol.replies import (
    OPEN_JOB_FIELDS,
    DeadWorker,
    EndedRecord,
    OpenJob,
    parse_ended,
    parse_open_job,
    queue_read,
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
        """Create a queued job (line 1, SUBMIT), unless the id exists or a limit is reached."""
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
        """Take jobs for a worker (line 4, CLAIM), in one round trip.

        Args:
            started: by job id, Celery's result while the job runs, as JSON.

        Returns:
            One reply for each job, in their order.
        """
        ttls, started = (self.settings.result_ttl_s, self.settings.refused_ttl_s), started or {}
        calls = [
            operations.claim(job_id, worker_id, fingerprint_json, started.get(job_id, ""), *ttls)
            for job_id in job_ids
        ]
        return self.run_many(calls, unreadable=Claim(ClaimVerdict.UNREADABLE))

    def mark(self, worker_id: str, epochs: dict[str, int]) -> set[str]:
        """Make jobs suspects before their first prefill (line 5, MARK).

        Returns:
            The ids of the jobs that the worker no longer owns.
        """
        return self.run(operations.mark(worker_id, epochs))

    def step(self, worker_id: str, batch: StepBatch) -> StepReplies:
        """Append and publish the tokens of the last steps, for many jobs at once (line 6, STEP)."""
        return self.run(operations.step(worker_id, batch))

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
        """Put a job into a final state other than done, as its owner (lines 7 and 8, END and FAIL).

        Returns:
            "ended", "fenced" or "missing".
        """
        return self.run(operations.end(job_id, worker_id, epoch, state, reason=reason, error=error))

    def release(self, job_id: str, worker_id: str, epoch: int) -> str:
        """Queue a running job again (line 8, RELEASE). The caller returns its message to the broker.

        Returns:
            "released", "fenced" or "missing".
        """
        return self.run(operations.release(job_id, worker_id, epoch))

    def condemn(self, job_id: str, queue: str, *, only_missing: bool = False) -> bool:
        """Remove an unreadable job from its ledger, and make it a dead letter if it is a hash.

        Args:
            only_missing: do nothing if the job has a hash, because its client may have submitted it again.

        Returns:
            Whether this call was the first to do so, and must count it.
        """
        error = ErrorInfo(
            code=ProtocolError.code, message="What Redis has stored of this job cannot be read."
        )
        ttl_s = self.settings.dead_letter_ttl_s
        verdict = self.run(operations.condemn(job_id, queue, error, ttl_s, only_missing=only_missing))
        return verdict not in ("known", "kept")

    def read_ended(self, job_ids: Sequence[str]) -> list[EndedRecord | None]:
        """Read jobs and their Celery results in one round trip.

        Returns:
            For each job its record and its result's JSON; None if the job is missing, has not ended or cannot
            be read.
        """
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            for job_id in job_ids:
                queue_read(pipeline, job_id, with_log=True)
                pipeline.get(keys.result(job_id))
            replies = pipeline.execute(raise_on_error=False)
        rows = zip(job_ids, replies[::3], replies[1::3], replies[2::3], strict=True)
        return [parse_ended(*row) for row in rows]

    def claim_callbacks(self, job_id: str) -> bool:
        """Return true for the one caller that may run the job's links and chain (line 9, CLOSE)."""
        return self.run(operations.callbacks(job_id))

    def close(self, job_id: str, queue: str) -> str:
        """Remove a final job from its ledger and let its hash and log expire (line 9, CLOSE, last part)."""
        return self.run(
            operations.close(job_id, queue, self.settings.result_ttl_s, self.settings.dead_letter_ttl_s)
        )

    def beat(self, status: WorkerStatus, lease_s: float) -> bool:
        """Renew the worker's lease (line 10, BEAT). Return false if the card of its model is missing."""
        return self.run(operations.beat(status, lease_s))

    def is_full(self) -> bool:
        """Return whether the server is at its memory limit.

        Workers must not take messages then, because the broker could not record who has them.
        """
        try:
            with redis_errors(self.settings.url):
                self.redis.set(keys.PROBE, "1", px=1000)
        except StorageFull:
            return True
        return False

    def delete_lease(self, worker_id: str) -> None:
        """Delete the worker's lease (line 17, DRAIN, last part). The worker remains known as a tombstone."""
        with redis_errors(self.settings.url):
            self.redis.delete(keys.lease(worker_id))

    def is_alive(self, worker_id: str) -> bool:
        """Return whether the worker's lease exists."""
        with redis_errors(self.settings.url):
            return bool(self.redis.exists(keys.lease(worker_id)))

    def dead_workers(self) -> list[DeadWorker]:
        """Return the workers without a lease, and their number of unacknowledged messages (for line 11)."""
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
        """Return the jobs of a queue that are not closed, the oldest first (for line 13, SWEEP)."""
        with redis_errors(self.settings.url):
            ledger = self.redis.zrange(keys.open_jobs(queue), first, first + limit - 1, withscores=True)
            pipeline = self.redis.pipeline(transaction=False)
            pipeline.time()
            for job_id, _enqueued_ms in ledger:
                pipeline.hmget(keys.job(job_id), *OPEN_JOB_FIELDS)
            # A key of another type is treated as a missing one.
            (seconds, micros), *rows = pipeline.execute(raise_on_error=False)
        now_ms = seconds * 1000 + micros / 1000
        return [
            parse_open_job(job_id, enqueued_ms, row, now_ms)
            for (job_id, enqueued_ms), row in zip(ledger, rows, strict=True)
        ]

    def forget_worker(self, worker_id: str) -> None:
        """Delete a worker's tombstone (line 11, REAP)."""
        with redis_errors(self.settings.url):
            self.redis.zrem(keys.WORKERS, worker_id)

    def try_lock(self, lock: str, token: str, ttl_s: float) -> bool:
        with redis_errors(self.settings.url):
            return bool(self.redis.set(lock, token, nx=True, px=int(ttl_s * 1000)))

    def unlock(self, lock: str, token: str) -> bool:
        """Release the lock if it still has this token. Return false if it has expired."""
        return self.run(operations.unlock(lock, token))

    def are_gone(self, client_ids: Sequence[str]) -> list[bool]:
        """Return, for each client, whether its lease has expired (for line 13, SWEEP)."""
        if not client_ids:
            return []
        with redis_errors(self.settings.url):
            return [value is None for value in self.redis.mget([keys.client(each) for each in client_ids])]

    def cancel(self, job_id: str, *, only_queued: bool = False) -> CancelVerdict:
        """Cancel a job (line 16, CANCEL). After ``ENDED`` the caller must close it.

        Args:
            only_queued: do not cancel a running job; atomic with a simultaneous claim.
        """
        return self.run(operations.cancel(job_id, only_queued=only_queued))

    def delete(self, job_id: str, queue: str) -> DeleteVerdict:
        """Remove everything that is stored of a job. After ``ENDED`` the caller must close it."""
        return self.run(operations.delete(job_id, queue, self.settings.result_ttl_s))

    def expire(self, job_id: str) -> bool:
        """End a queued job that is past its deadline or has waited too long for its weights (line 13, SWEEP).

        Returns:
            Whether this call ended it; the caller must then close it.
        """
        return self.run(operations.expire(job_id))

    def due(self, job_id: str, *, has_worker: bool = False) -> bool:
        """Make a scheduled or refused job due if its time has come (line 13, SWEEP).

        Args:
            has_worker: a worker has the weights that a refused job waits for, so it is due now.

        Returns:
            Whether this call made it due; the caller must then send its message.
        """
        return self.run(operations.due(job_id, has_worker=has_worker))

    def refuse(self, job_id: str, failure_json: str) -> bool:
        """Store a failed result for an id without a job. Return false if it has a job or a final result."""
        return self.run(operations.refuse(job_id, failure_json, self.settings.result_ttl_s))

    def keep_unreadable(self, entry_json: str) -> None:
        """Store a message that cannot be answered, for an operator: the newest hundred, for a day."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.lpush(keys.UNREADABLE, entry_json)
            pipeline.ltrim(keys.UNREADABLE, 0, _MAX_UNREADABLE - 1)
            pipeline.expire(keys.UNREADABLE, _UNREADABLE_TTL_S)
            pipeline.execute()

    def dead_letters(self) -> list[str]:
        """Return the ids of the dead letters that have not expired, the oldest first."""
        with redis_errors(self.settings.url):
            job_ids = self.redis.zrange(keys.DEAD, 0, -1)
            pipeline = self.redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.exists(keys.job(job_id))
            kept = pipeline.execute()
            gone = [job_id for job_id, exists in zip(job_ids, kept, strict=True) if not exists]
            if gone:
                # A monitor's user may not delete; another user will.
                with contextlib.suppress(redis.exceptions.NoPermissionError):
                    self.redis.zrem(keys.DEAD, *gone)
        return [job_id for job_id in job_ids if job_id not in set(gone)]

    def publish_card(self, card: ModelCard) -> None:
        """Store a model's card. Producers know the model from then on, also without workers."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.set(keys.model(card.name), card.model_dump_json())
            pipeline.sadd(keys.MODELS, card.name)
            pipeline.execute()

    def remove_card(self, name: str) -> bool:
        """Delete a model's card. Return false if there was none."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.delete(keys.model(name))
            pipeline.srem(keys.MODELS, name)
            return any(pipeline.execute())

    def run_many(self, calls: Sequence[Operation[T]], unreadable: T) -> list[T]:
        """Run several scripts in one round trip; they are not atomic together.

        Args:
            unreadable: returned instead of a reply if a script found a key or a field that it cannot read.
        """
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=False)
            for call in calls:
                _queue_call(pipeline, call)
            replies = pipeline.execute(raise_on_error=False)
            return self._parsed(calls, replies, unreadable)

    def close_together(self, jobs: Sequence[JobClosing]) -> list[bool]:
        """Store and announce Celery results and close their jobs (line 9, CLOSE), in one round trip.

        Each result is written before its job is closed; nothing else is atomic.

        Returns:
            For each job whether Redis could read its keys.
        """
        ttl_s = self.settings.result_ttl_s
        calls = [
            operations.close(job.job_id, job.queue, ttl_s, self.settings.dead_letter_ttl_s) for job in jobs
        ]
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=False)
            for job in jobs:
                if job.result_json is not None:
                    name = keys.result(job.job_id)
                    pipeline.set(name, job.result_json, px=job.ttl_ms or ttl_s * 1000)
                    pipeline.publish(name, job.result_json)
            num_writes = len(pipeline)
            for call in calls:
                _queue_call(pipeline, call)
            replies = pipeline.execute(raise_on_error=False)
            for reply in replies[:num_writes]:
                _raised(reply)
            return [verdict != "" for verdict in self._parsed(calls, replies[num_writes:], "")]

    def _parsed(self, calls: Sequence[Operation[T]], replies: Sequence[Any], unreadable: T) -> list[T]:
        return [
            self.run(call)
            if isinstance(reply, redis.exceptions.NoScriptError)
            else unreadable
            if is_unreadable(reply)
            else call.parse(_raised(reply))
            for call, reply in zip(calls, replies, strict=True)
        ]


def _queue_call(pipeline: Any, call: Operation[Any]) -> None:
    pipeline.evalsha(load_script(call.script).sha, len(call.keys), *call.keys, *call.args)


def _raised(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply
