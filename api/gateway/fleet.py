"""GatewayFleet: the fleet's client with what only a gateway does, which submits and lists others' jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pagefleet.api.client.asynchronous.client import AsyncFleetClient
from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.api.protocol.operation_types import Charge, Operation

T = TypeVar("T")


class GatewayFleet(AsyncFleetClient):
    """Its streams have no idle timeout: the gateway has its own."""

    async def start(
        self,
        fields: Mapping[str, Any],
        *,
        job_id: str,
        max_open: int | None = None,
        max_stored: int | None = None,
        charge: Charge | None = None,
        keep: bool = True,
    ) -> AsyncTokenStream:
        """Submit a job. If the call is interrupted, the job is cancelled, even if it is detached.

        Args:
            fields: of the request, ``echo`` and sampling parameters included.
            job_id: made by the gateway. Its client does not know it yet.
            max_open: limit of the choices of the tenant's open jobs in the queue, if below the model card's.
            max_stored: limit of the bytes of the tenant's jobs, if below the model card's.
            charge: what the API key pays at the job's end, instead of what was reserved.
            keep: False if ``result()`` will not be called. The stream then keeps no token that it has given.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, QueueFull, RedisUnavailable.
        """
        prepared = await self._prepare(job_id, fields)
        prepared = replace(prepared, max_open=max_open, max_stored=max_stored, charge=charge)
        return await self._submit(prepared, None, discard_if_interrupted=True, keep=keep)

    def discard(self, job_id: str) -> None:
        """Cancel a job whose client does not know it, if it exists. Returns at once; if the server is
        unavailable, the job is cancelled when it is back."""
        self._live.readers.discard_job(job_id)

    async def recent_jobs(self, tenant: str | None) -> list[str]:
        """Return the ids of a tenant's newest 500 jobs, or of those without a tenant, newest first."""
        return await self._live.store.recent_jobs(tenant)

    async def job_heads(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return jobs by id, without their requests and tokens. Missing jobs are left out."""
        return await self._live.store.job_heads(job_ids)

    async def run(self, operation: Operation[T]) -> T:
        """Run a script of the gateway on the fleet's server."""
        return await self._live.store.run(operation)
