# Generated from api/protocol/async_job_store.py by `make sync-client`; do not edit.
"""The producer's half of the store of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import redis

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.messages import ModelCard, WorkerStatus
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.connection import connect, redis_errors
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.operation_types import CLIENT_LEASE_S, Operation
from pagefleet.api.protocol.replies import (
    HEAD_FIELDS,
    parse_after,
    parse_heads,
    parse_readable,
    parse_record,
    queue_read,
    queue_read_after,
)
from pagefleet.api.protocol.scripts import load_script
from pagefleet.api.protocol.sync_io import in_thread

T = TypeVar("T")

_PARSED_AT_ONCE: Final = 2**16
"""Bytes of a log, which take some milliseconds."""


class ProducerStore:
    """The producer's half of the store. Every method is safe to repeat.

    All methods raise :class:`~pagefleet.api.contract.errors.RedisUnavailable` if the server does not answer.
    """

    def __init__(self, settings: FleetSettings) -> None:
        self.settings = settings
        # redis-py types a reply as the union of all replies; operations.py has the real types.
        self.redis: Any = connect(settings)

    def read(self, job_id: str, *, with_log: bool = True) -> JobRecord | None:
        """Return a job's hash and log (line 15, replay), read together; None if there is no such job."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            queue_read(pipeline, job_id, with_log)
            replies = pipeline.execute()
        if with_log and sum(map(len, replies[1])) > _PARSED_AT_ONCE:
            # Parsing a long log takes seconds, in which other streams must continue.
            return in_thread(parse_record, job_id, replies)
        return parse_record(job_id, replies)

    def read_after(self, job_id: str, position: LogPosition) -> JobRecord | None:
        """Return a job's state and its log after ``position`` (line 15, replay), read together."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=True)
            queue_read_after(pipeline, job_id, position)
            return parse_after(job_id, position, pipeline.execute())

    def reply_channel(self, job_id: str) -> str | None:
        """Return the channel on which the job's producer listens."""
        with redis_errors(self.settings.url):
            channel: str | None = self.redis.hget(keys.job(job_id), "channel")
            return channel

    def recent_jobs(self, tenant: str | None) -> list[str]:
        """Return the ids of a tenant's newest jobs, or of those without a tenant, the newest first."""
        with redis_errors(self.settings.url):
            job_ids: list[str] = self.redis.zrange(keys.recent_jobs(tenant), 0, -1)
        return job_ids[::-1]

    def job_heads(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return jobs by id, without their requests and logs. Missing jobs are left out."""
        with redis_errors(self.settings.url):
            pipeline = self.redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hmget(keys.job(job_id), *HEAD_FIELDS)
            rows = pipeline.execute(raise_on_error=False)
        return parse_heads(job_ids, rows)

    def beat_client(self, client_id: str) -> None:
        """Renew the client's lease (line 15), which keeps its jobs alive that are not detached."""
        with redis_errors(self.settings.url):
            self.redis.set(keys.client(client_id), "1", px=int(CLIENT_LEASE_S * 1000))

    def cards(self) -> list[ModelCard]:
        with redis_errors(self.settings.url):
            names = sorted(self.redis.smembers(keys.MODELS))
            texts = self.redis.mget([keys.model(name) for name in names]) if names else []
        return parse_readable(ModelCard, names, texts)

    def workers(self) -> list[WorkerStatus]:
        """Return the workers whose lease is alive, by id."""
        with redis_errors(self.settings.url):
            ids = sorted(self.redis.zrange(keys.WORKERS, 0, -1))
            texts = self.redis.mget([keys.lease(worker_id) for worker_id in ids]) if ids else []
        return parse_readable(WorkerStatus, ids, texts)

    def watch(self, job_id: str, client_id: str = "") -> bool:
        """Line 15, ATTACH: the job also publishes on its own channel, and lives as long as this client.

        Returns:
            False if there is no such job.
        """
        return self.run(operations.watch(job_id, client_id))

    def run(self, operation: Operation[T]) -> T:
        """Run one script. Its text is sent only to a server that does not know it yet."""
        script = load_script(operation.script)
        with redis_errors(self.settings.url):
            call = (len(operation.keys), *operation.keys, *operation.args)
            try:
                reply = self.redis.evalsha(script.sha, *call)
            except redis.exceptions.NoScriptError:
                reply = self.redis.eval(script.source, *call)
        return operation.parse(reply)

    def run_together(self, calls: Sequence[Operation[T]]) -> list[T | FleetError]:
        """Run several scripts in one round trip; they are not atomic together.

        Returns:
            For each call its result, or the error that :meth:`run` would raise.
        """
        try:
            with redis_errors(self.settings.url):
                pipeline = self.redis.pipeline(transaction=False)
                for call in calls:
                    sha = load_script(call.script).sha
                    pipeline.evalsha(sha, len(call.keys), *call.keys, *call.args)
                replies = pipeline.execute(raise_on_error=False)
        except FleetError as error:
            return [error.copy() for _ in calls]
        outcomes: list[T | FleetError] = []
        for call, reply in zip(calls, replies, strict=True):
            try:
                result: T = self._result(call, reply)
                outcomes.append(result)
            except FleetError as error:
                outcomes.append(error)
        return outcomes

    def _result(self, call: Operation[T], reply: Any) -> T:
        if isinstance(reply, redis.exceptions.NoScriptError):
            return self.run(call)
        if isinstance(reply, Exception):
            with redis_errors(self.settings.url):
                raise reply
        return call.parse(reply)

    def close_connections(self) -> None:
        self.redis.close()
