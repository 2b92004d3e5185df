"""AsyncFleetClient: the client of a backend service."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Never

from pagefleet.api.broker.status import read_status
from pagefleet.api.client.asynchronous.connections import AsyncConnections
from pagefleet.api.client.asynchronous.context import opens_stream
from pagefleet.api.client.asynchronous.fleet import AsyncFleet
from pagefleet.api.client.asynchronous.resources import PerProcess
from pagefleet.api.client.asynchronous.sources import AsyncAttachedSource, AsyncOwnSource, submit_together
from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobArguments, check_unknown
from pagefleet.api.client.questions import Answer, PendingQuestion
from pagefleet.api.client.stream import StreamState
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import MAX_SEED, ModelCard, WorkerStatus
from pagefleet.api.protocol.job_errors import job_not_found, naming_job
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.prepared import PreparedRequest, prepare


class AsyncFleetClient(AsyncFleet):
    """The fleet behind one Redis server.

    The first call connects. With asyncio, a client belongs to one event loop. Without asyncio, it is safe for
    threads, in Celery tasks and after ``fork``: each process has its own connections.

    Args:
        settings: where the server is. By default they come from the environment (``REDIS_URL``), or else from
            the stack that ``pagefleet up`` runs on this machine.
        redis_url: instead of ``settings``.
    """

    def __init__(self, settings: FleetSettings | None = None, *, redis_url: str | None = None) -> None:
        self.settings = settings or FleetSettings.load(redis_url=redis_url)
        self._connections = PerProcess(functools.partial(AsyncConnections, self.settings))

    @opens_stream
    async def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> AsyncTokenStream:
        check_unknown("attach", unknown)
        with naming_job(job_id):
            live = await self._opened()
            # First of all: the job must not end because its last reader leaves at this moment.
            source = AsyncAttachedSource(live, job_id)
            try:
                is_there = await live.store.watch(job_id, live.client_id)
                if is_there:
                    await source.open()
                record = await live.store.read(job_id) if is_there else None
                if record is None:
                    raise job_not_found(job_id)
            except FleetError:
                # The caller may try again, so this reader does not end the job.
                await source.close()
                raise
            state = StreamState(job_id, after=after, keep=keep)
            state.feed_record(record)
            return AsyncTokenStream(state, source, record.model, idle_timeout)

    async def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        record = await (await self._opened()).store.read(job_id, with_log=with_log)
        if record is None:
            raise job_not_found(job_id)
        return record

    async def cancel(self, job_id: str) -> bool:
        return await (await self._opened()).cancel(job_id)

    async def delete(self, job_id: str) -> None:
        await (await self._opened()).delete(job_id)

    async def card(self, model: str | None) -> ModelCard:
        return (await (await self._opened()).index(model)).resolve(model)

    async def models(self) -> list[ModelCard]:
        return await (await self._opened()).store.cards()

    async def workers(self) -> list[WorkerStatus]:
        return await (await self._opened()).store.workers()

    async def status(self) -> FleetStatus:
        live = await self._opened()
        return await live.tasks.in_thread(read_status, live.blocking_store)

    async def open(self) -> None:
        """Connect, if this has not happened yet. Raises: RedisUnavailable."""
        await self._live.open()

    async def close(self) -> None:
        """Close the connections. The next call opens them again."""
        await self._live.close()

    async def _ask(self, question: PendingQuestion) -> Answer:
        return await (await self._opened()).questions.ask(question)

    async def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> AsyncTokenStream:
        prepared = await self._prepare(job_id, fields)
        return await self._submit(prepared, idle_timeout, discard_if_interrupted=job_id is None)

    async def _prepare(self, job_id: str | None, fields: Mapping[str, Any]) -> PreparedRequest:
        """Raises: InvalidRequest, ContextTooLong, UnknownModel, RedisUnavailable."""
        model = fields.get("model")
        index = await (await self._opened()).index(model if isinstance(model, str) else None)
        return prepare(index, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes)

    async def _submit(
        self,
        prepared: PreparedRequest,
        idle_timeout: float | None,
        *,
        discard_if_interrupted: bool,
        keep: bool = True,
    ) -> AsyncTokenStream:
        """Submit a job, or read it if its id exists. For the arguments see AsyncOwnSource and StreamState.

        Raises:
            JobExists, JobDeleted, QueueFull, RedisUnavailable.
        """
        source = AsyncOwnSource(self._live, prepared, discard_if_interrupted=discard_if_interrupted)
        is_new = await source.submit()
        return await self._reader(source, prepared, idle_timeout, is_new=is_new, keep=keep)

    async def _start_all(
        self, calls: Sequence[JobArguments | FleetError]
    ) -> list[AsyncTokenStream | FleetError]:
        prepared = [await self._prepared_or_error(call) for call in calls]
        sources = [
            AsyncOwnSource(self._live, each, discard_if_interrupted=call.job_id is None)
            for call, each in zip(calls, prepared, strict=True)
            if isinstance(call, JobArguments) and isinstance(each, PreparedRequest)
        ]
        outcomes = iter(zip(sources, await submit_together(self._live, sources), strict=True))
        streams: list[AsyncTokenStream | FleetError] = []
        for call, each in zip(calls, prepared, strict=True):
            if isinstance(call, FleetError):
                streams.append(call)
                continue
            if isinstance(each, FleetError):
                streams.append(each)
                continue
            source, outcome = next(outcomes)
            if isinstance(outcome, FleetError):
                streams.append(outcome)
            else:
                streams.append(await self._reader(source, each, call.idle_timeout, is_new=outcome))
        return streams

    async def _prepared_or_error(self, call: JobArguments | FleetError) -> PreparedRequest | FleetError:
        try:
            return call if isinstance(call, FleetError) else await self._prepare(call.job_id, call.fields)
        except RedisUnavailable:
            # The same for all requests, and nothing was submitted.
            raise
        except FleetError as error:
            return error

    async def _reader(
        self,
        source: AsyncOwnSource,
        prepared: PreparedRequest,
        idle_timeout: float | None,
        *,
        is_new: bool,
        keep: bool = True,
    ) -> AsyncTokenStream:
        """Return the stream of a job that this client has submitted, or that existed before."""
        if not is_new:
            await source.close()
            return await self.attach(prepared.job_id, idle_timeout=idle_timeout, keep=keep)
        request = prepared.request
        state = StreamState(
            prepared.job_id, keep=keep, num_choices=request.sampling.n, reading=request.chat_reading
        )
        return AsyncTokenStream(state, source, prepared.card.name, idle_timeout)

    @property
    def _live(self) -> AsyncConnections:
        return self._connections.get()

    async def _opened(self) -> AsyncConnections:
        live = self._live
        await live.open()
        return live
