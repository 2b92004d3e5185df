"""AsyncOperationBatch: concurrent calls of the job store share round trips."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from pagefleet.api.contract.errors import FleetError
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.operation_types import Operation

T = TypeVar("T")

_MAX_TOGETHER: Final = 128
"""Calls in one round trip; they block the server for about 10 ms."""


class AsyncOperationBatch:
    """Collects the calls of one turn of the event loop, and those that come while a batch is under way."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._waiting: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, call: Operation[T]) -> T:
        """Run one script, as :meth:`AsyncJobStore.run`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append((call, future))
        if self._sender is None:
            self._sender = loop.create_task(self._send())
        return await future

    async def _send(self) -> None:
        batch: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MAX_TOGETHER], self._waiting[_MAX_TOGETHER:]
                outcomes = await self._store.run_together([call for call, _ in batch])
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    _settle(future, outcome)
        except BaseException as error:
            # The event loop ends, or the program has a fault: no caller may wait forever.
            for _, future in (*batch, *self._waiting):
                _settle(future, error)
            self._waiting = []
            raise
        finally:
            self._sender = None


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, FleetError):
        future.set_exception(outcome)
    elif isinstance(outcome, BaseException):
        future.cancel()
    else:
        future.set_result(outcome)
