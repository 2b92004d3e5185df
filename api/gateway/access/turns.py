"""Turns: so many questions of one tenant at once. Its others wait for a while, and no other tenant does."""

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
"""Of one tenant in this process."""


class Turns:
    def __init__(self) -> None:
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._num_asking: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Raises: QueueFull: too many of this tenant wait; NoAnswer: its turn did not come in time."""
        if self._num_asking[tenant] >= MAX_WAITING:
            raise QueueFull("Too many questions of this tenant wait; try again later.", param="tenant")
        turn = self._turns.setdefault(tenant, asyncio.Semaphore(AT_ONCE))
        self._num_asking[tenant] += 1
        try:
            await self._wait(turn)
            try:
                yield
            finally:
                turn.release()
        finally:
            self._num_asking[tenant] -= 1
            if not self._num_asking[tenant]:
                # Nothing is kept of tenants that do not ask.
                del self._num_asking[tenant], self._turns[tenant]

    @staticmethod
    async def _wait(turn: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await turn.acquire()
        except TimeoutError:
            raise NoAnswer("The questions before this one took too long; try again later.") from None
