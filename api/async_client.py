"""AsyncFleetClient: :class:`~pagefleet.api.client.FleetClient` for asyncio, on ``redis.asyncio``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from pagefleet.api import operations
from pagefleet.api.async_connections import AsyncConnections
from pagefleet.api.async_sources import AsyncAttachedSource, AsyncOwnSource
from pagefleet.api.connections import job_not_found
from pagefleet.api.fleet import (
    DEFAULT_TIMEOUT_S,
    FleetStatus,
    as_list,
    as_messages,
    prepare,
)
from pagefleet.api.keys import Lane
from pagefleet.api.messages import MAX_SEED, ModelCard, SamplingOptions
from pagefleet.api.settings import FleetSettings
from pagefleet.api.status import read_status
from pagefleet.api.stream import StreamState
from pagefleet.api.structured_outputs import StructuredOptions
from pagefleet.api.token_stream import AsyncTokenStream


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
        model: str | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.generate`."""
        fields = {
            "prompt": prompt,
            "prompt_token_ids": as_list(prompt_token_ids),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return await self._start(job_id, fields, timeout)

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.chat`."""
        fields = {
            "messages": as_messages(messages),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return await self._start(job_id, fields, timeout)

    async def attach(
        self,
        job_id: str,
        *,
        after: int = 0,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> AsyncTokenStream:
        """See :meth:`pagefleet.api.fleet.Fleet.attach`."""
        live = self._live
        await live.open()
        if not await live.store.run(operations.watch(job_id, live.client_id)):
            raise job_not_found(job_id)
        source = AsyncAttachedSource(live, job_id)
        await source.open()
        record = await live.store.read(job_id)
        if record is None:
            await source.close()
            raise job_not_found(job_id)
        state = StreamState(job_id, after=after)
        state.feed_record(record)
        return AsyncTokenStream(state, source, record.model, timeout)

    async def cancel(self, job_id: str) -> bool:
        """See :meth:`pagefleet.api.fleet.Fleet.cancel`."""
        return await self._live.cancel(job_id)

    async def delete(self, job_id: str) -> None:
        """See :meth:`pagefleet.api.fleet.Fleet.delete`."""
        await self._live.delete(job_id)

    async def models(self) -> list[ModelCard]:
        return await self._live.store.cards()

    async def status(self) -> FleetStatus:
        return await asyncio.to_thread(read_status, self._live.sync_store)

    async def close(self) -> None:
        await self._live.close()

    async def __aenter__(self) -> Self:
        await self._live.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _start(
        self, job_id: str | None, fields: Mapping[str, Any], timeout_s: float | None
    ) -> AsyncTokenStream:
        live = self._live
        await live.open()
        model = fields.get("model")
        index = await live.index(model if isinstance(model, str) else None)
        prepared = prepare(
            index, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes
        )
        source = AsyncOwnSource(live, prepared)
        if not await source.submit():
            await source.close()
            return await self.attach(prepared.job_id, timeout=timeout_s)
        return AsyncTokenStream(StreamState(prepared.job_id), source, prepared.card.name, timeout_s)
