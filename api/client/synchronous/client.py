# Generated from api/client/asynchronous/client.py by `make sync-client`; do not edit.
"""FleetClient: the client of a backend service."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Never

from pagefleet.api.broker.status import read_status
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobArguments, check_unknown
from pagefleet.api.client.questions import Answer, PendingQuestion
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.synchronous.connections import Connections
from pagefleet.api.client.synchronous.context import opens_stream
from pagefleet.api.client.synchronous.fleet import Fleet
from pagefleet.api.client.synchronous.resources import PerProcess
from pagefleet.api.client.synchronous.sources import AttachedSource, OwnSource, submit_together
from pagefleet.api.client.synchronous.token_stream import TokenStream
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import MAX_SEED, ModelCard, WorkerStatus
from pagefleet.api.protocol.job_errors import job_not_found, naming_job
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.prepared import PreparedRequest, prepare


class FleetClient(Fleet):
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
        self._connections = PerProcess(functools.partial(Connections, self.settings))

    @opens_stream
    def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> TokenStream:
        check_unknown("attach", unknown)
        with naming_job(job_id):
            live = self._opened()
            # First of all: the job must not end because its last reader leaves at this moment.
            source = AttachedSource(live, job_id)
            try:
                is_there = live.store.watch(job_id, live.client_id)
                if is_there:
                    source.open()
                record = live.store.read(job_id) if is_there else None
                if record is None:
                    raise job_not_found(job_id)
            except FleetError:
                # The caller may try again, so this reader does not end the job.
                source.close()
                raise
            state = StreamState(job_id, after=after, keep=keep)
            state.feed_record(record)
            return TokenStream(state, source, record.model, idle_timeout)

    def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        record = (self._opened()).store.read(job_id, with_log=with_log)
        if record is None:
            raise job_not_found(job_id)
        return record

    def cancel(self, job_id: str) -> bool:
        return (self._opened()).cancel(job_id)

    def delete(self, job_id: str) -> None:
        (self._opened()).delete(job_id)

    def card(self, model: str | None) -> ModelCard:
        return ((self._opened()).index(model)).resolve(model)

    def models(self) -> list[ModelCard]:
        return (self._opened()).store.cards()

    def workers(self) -> list[WorkerStatus]:
        return (self._opened()).store.workers()

    def status(self) -> FleetStatus:
        live = self._opened()
        return live.tasks.in_thread(read_status, live.blocking_store)

    def open(self) -> None:
        """Connect, if this has not happened yet. Raises: RedisUnavailable."""
        self._live.open()

    def close(self) -> None:
        """Close the connections. The next call opens them again."""
        self._live.close()

    def _ask(self, question: PendingQuestion) -> Answer:
        return (self._opened()).questions.ask(question)

    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream:
        prepared = self._prepare(job_id, fields)
        return self._submit(prepared, idle_timeout, discard_if_interrupted=job_id is None)

    def _prepare(self, job_id: str | None, fields: Mapping[str, Any]) -> PreparedRequest:
        """Raises: InvalidRequest, ContextTooLong, UnknownModel, RedisUnavailable."""
        model = fields.get("model")
        index = (self._opened()).index(model if isinstance(model, str) else None)
        return prepare(index, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes)

    def _submit(
        self,
        prepared: PreparedRequest,
        idle_timeout: float | None,
        *,
        discard_if_interrupted: bool,
        keep: bool = True,
    ) -> TokenStream:
        """Submit a job, or read it if its id exists. For the arguments see OwnSource and StreamState.

        Raises:
            JobExists, JobDeleted, QueueFull, RedisUnavailable.
        """
        source = OwnSource(self._live, prepared, discard_if_interrupted=discard_if_interrupted)
        is_new = source.submit()
        return self._reader(source, prepared, idle_timeout, is_new=is_new, keep=keep)

    def _start_all(self, calls: Sequence[JobArguments | FleetError]) -> list[TokenStream | FleetError]:
        prepared = [self._prepared_or_error(call) for call in calls]
        sources = [
            OwnSource(self._live, each, discard_if_interrupted=call.job_id is None)
            for call, each in zip(calls, prepared, strict=True)
            if isinstance(call, JobArguments) and isinstance(each, PreparedRequest)
        ]
        outcomes = iter(zip(sources, submit_together(self._live, sources), strict=True))
        streams: list[TokenStream | FleetError] = []
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
                streams.append(self._reader(source, each, call.idle_timeout, is_new=outcome))
        return streams

    def _prepared_or_error(self, call: JobArguments | FleetError) -> PreparedRequest | FleetError:
        try:
            return call if isinstance(call, FleetError) else self._prepare(call.job_id, call.fields)
        except RedisUnavailable:
            # The same for all requests, and nothing was submitted.
            raise
        except FleetError as error:
            return error

    def _reader(
        self,
        source: OwnSource,
        prepared: PreparedRequest,
        idle_timeout: float | None,
        *,
        is_new: bool,
        keep: bool = True,
    ) -> TokenStream:
        """Return the stream of a job that this client has submitted, or that existed before."""
        if not is_new:
            source.close()
            return self.attach(prepared.job_id, idle_timeout=idle_timeout, keep=keep)
        request = prepared.request
        state = StreamState(
            prepared.job_id, keep=keep, num_choices=request.sampling.n, reading=request.chat_reading
        )
        return TokenStream(state, source, prepared.card.name, idle_timeout)

    @property
    def _live(self) -> Connections:
        return self._connections.get()

    def _opened(self) -> Connections:
        live = self._live
        live.open()
        return live
