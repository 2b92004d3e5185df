"""AsyncFleetClient: :class:`~pagefleet.api.client.client.FleetClient` for asyncio, on ``redis.asyncio``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from pagefleet.api.broker.status import read_status
from pagefleet.api.client.async_connections import AsyncConnections
from pagefleet.api.client.async_sources import AsyncAttachedSource, AsyncOwnSource
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobOptions, job_arguments
from pagefleet.api.client.questions import Asked, TokenizedPrompt, detokenize_question, tokenize_question
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.token_stream import AsyncTokenStream
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import MAX_SEED, ModelCard, WorkerStatus
from pagefleet.api.contract.requests import as_list, as_messages
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.job_errors import about, job_not_found
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.operations import Charge, Operation
from pagefleet.api.protocol.prepared import prepare

T = TypeVar("T")


class AsyncFleetClient:
    """The fleet behind one Redis server, for one event loop. Same calls, same errors as ``FleetClient``.

    Use as ``async with AsyncFleetClient() as fleet``, or call :meth:`close` yourself.
    """

    def __init__(self, settings: FleetSettings | None = None, *, redis_url: str | None = None) -> None:
        self.settings = settings or FleetSettings.load(redis_url=redis_url)
        self._live = AsyncConnections(self.settings)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.client.fleet.Fleet.generate`."""
        job_id, fields, idle_timeout = job_arguments(
            options, prompt=prompt, prompt_token_ids=as_list(prompt_token_ids)
        )
        return await self.start(fields, job_id=job_id, idle_timeout=idle_timeout)

    async def chat(
        self, messages: Sequence[Mapping[str, str]], **options: Unpack[JobOptions]
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.client.fleet.Fleet.chat`."""
        job_id, fields, idle_timeout = job_arguments(options, messages=as_messages(messages))
        return await self.start(fields, job_id=job_id, idle_timeout=idle_timeout)

    async def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.client.fleet.Fleet.attach`.

        Args:
            after: one number for all choices, or one for each.
            keep: false where nobody will ask for the result: the stream then forgets what it has given.
        """
        live = self._live
        with about(job_id):
            await live.open()
            # First: whoever leaves now sees that somebody reads.
            source = AsyncAttachedSource(live, job_id)
            try:
                is_there = await live.store.run(operations.watch(job_id, live.client_id))
                if is_there:
                    await source.open()
                record = await live.store.read(job_id) if is_there else None
                if record is None:
                    raise job_not_found(job_id)
            except FleetError:
                # Not a reader that has left: the caller may try again.
                await source.close()
                raise
            state = StreamState(job_id, after=after, keep=keep)
            state.feed_record(record)
            return AsyncTokenStream(state, source, record.model, idle_timeout)

    async def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        """What the server knows of a job now. Raises: JobNotFound."""
        record = await self._live.store.read(job_id, with_log=with_log)
        if record is None:
            raise job_not_found(job_id)
        return record

    async def recent_jobs(self, tenant: str | None) -> list[str]:
        """The ids of the newest 500 jobs of a tenant, or of nobody; the newest first, ended or not."""
        return await self._live.store.recent_jobs(tenant)

    async def job_heads(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """By id, what is known of jobs but for their requests and tokens; what is gone is left out."""
        return await self._live.store.job_heads(job_ids)

    async def cancel(self, job_id: str) -> bool:
        """See :meth:`pagefleet.api.client.fleet.Fleet.cancel`."""
        return await self._live.cancel(job_id)

    def discard(self, job_id: str) -> None:
        """Cancels a job that nobody has been told of, if it exists. Returns at once; a server that is away is
        told when it is back."""
        self._live.readers.orphan(job_id)

    async def delete(self, job_id: str) -> None:
        """See :meth:`pagefleet.api.client.fleet.Fleet.delete`."""
        await self._live.delete(job_id)

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
        return_token_strs: bool = False,
    ) -> TokenizedPrompt:
        """See :meth:`pagefleet.api.client.fleet.Fleet.tokenize`."""
        options = {
            "add_special_tokens": add_special_tokens,
            "add_generation_prompt": add_generation_prompt,
            "return_token_strs": return_token_strs,
        }
        question, card = tokenize_question(prompt, messages, options), await self.card(model)
        asked = Asked(question, card)
        return asked.tokenized(await self._live.questions.ask(asked))

    async def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """See :meth:`pagefleet.api.client.fleet.Fleet.detokenize`."""
        card = await self.card(model)
        asked = Asked(detokenize_question(token_ids, card), card)
        return (await self._live.questions.ask(asked)).prompt or ""

    async def models(self) -> list[ModelCard]:
        return await self._live.store.cards()

    async def card(self, model: str | None) -> ModelCard:
        """Of a name or an alias; with None, of the only model there is. Raises: UnknownModel."""
        return (await self._live.index(model)).resolve(model)

    async def workers(self) -> list[WorkerStatus]:
        """Those whose lease is alive."""
        return await self._live.store.workers()

    async def api_keys_stamp(self) -> str | None:
        """What is another one after each change of :meth:`api_keys`; None where there never was one."""
        return await self._live.store.api_keys_stamp()

    async def api_keys(self) -> dict[str, str]:
        """The gateway's keys that stand in Redis, and their stamp."""
        return await self._live.store.api_keys()

    async def run(self, operation: Operation[T]) -> T:
        """One script on the fleet's server, for what stands beside the fleet and shares its state."""
        return await self._live.store.run(operation)

    async def status(self) -> FleetStatus:
        return await self._live.in_thread(read_status, self._live.sync_store)

    async def open(self) -> None:
        """Connects, if it is not yet. Raises: RedisUnavailable."""
        await self._live.open()

    async def close(self) -> None:
        await self._live.close()

    async def __aenter__(self) -> Self:
        await self._live.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(
        self,
        fields: Mapping[str, Any],
        *,
        job_id: str | None = None,
        max_open: int | None = None,
        max_stored: int | None = None,
        charge: Charge | None = None,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        is_drawn: bool = False,
    ) -> AsyncTokenStream:
        """A job from the fields of a request, ``echo`` and sampling parameters among them: what
        :meth:`generate` and :meth:`chat` do, for who relays requests of others.

        Args:
            max_open: so many choices may the open jobs of the request's tenant have in its queue, if the
                model's card does not allow fewer.
            max_stored: so many bytes may the jobs of the request's tenant take, in the same way.
            charge: who pays for it at its end, in place of what was reserved.
            keep: false where nobody will ask for the result: the stream then forgets what it has given.
            is_drawn: nobody but the caller knows ``job_id``: where it is cancelled meanwhile, the job is too.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, QueueFull, RedisUnavailable.
        """
        live = self._live
        await live.open()
        model = fields.get("model")
        index = await live.index(model if isinstance(model, str) else None)
        prepared = prepare(
            index, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes
        )
        prepared = replace(prepared, max_open=max_open, max_stored=max_stored, charge=charge)
        source = AsyncOwnSource(live, prepared, is_drawn=is_drawn or job_id is None)
        if not await source.submit():
            await source.close()
            return await self.attach(prepared.job_id, idle_timeout=idle_timeout, keep=keep)
        state = StreamState(prepared.job_id, keep=keep, num_choices=prepared.request.sampling.n)
        return AsyncTokenStream(state, source, prepared.card.name, idle_timeout)
