"""TenantSlots: limits the simultaneous tokenize requests of each tenant; further ones wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

from pagefleet.api.client.questions import ANSWER_WITHIN_S
from pagefleet.api.contract.errors import NoAnswer, QueueFull

AT_ONCE: Final = 8
MAX_WAITING: Final = 64
"""Limit of the running and waiting requests of a tenant at this gateway."""


class TenantSlots:
    def __init__(self) -> None:
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._num_open: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def acquire(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a slot of the tenant.

        Raises:
            QueueFull: too many requests of the tenant wait.
            NoAnswer: the requests before this one took too long.
        """
        if self._num_open[tenant] >= MAX_WAITING:
            raise QueueFull("tenant: too many tokenize requests wait; retry later.", param="tenant")
        slot = self._slots.setdefault(tenant, asyncio.Semaphore(AT_ONCE))
        self._num_open[tenant] += 1
        try:
            await self._wait(slot)
            try:
                yield
            finally:
                slot.release()
        finally:
            self._num_open[tenant] -= 1
            if not self._num_open[tenant]:
                # Keep no state of tenants without requests.
                del self._num_open[tenant], self._slots[tenant]

    @staticmethod
    async def _wait(slot: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await slot.acquire()
        except TimeoutError:
            raise NoAnswer("The requests before this one took too long; retry later.") from None
