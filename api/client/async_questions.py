"""AsyncQuestions: asks a model's workers, and waits for the answer; see ``questions.py``."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from pagefleet.api.client.questions import ANSWER_WITHIN_S, LOOK_AFTER_S, Answer, Asked
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.connection import connect_async, redis_errors

_MOST_AT_ONCE: Final = 64


class AsyncQuestions:
    """With connections of its own: each is taken for as long as one asker waits, and jobs must not wait for
    them. Further askers wait for one of those."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._redis: Any = connect_async(store.settings, _MOST_AT_ONCE)

    async def ask(self, asked: Asked) -> Answer:
        """Raises: FleetError: the worker's; NoAnswer, QueueFull, RedisUnavailable."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        with redis_errors(self._store.settings.url):
            asked.check(await self._redis.llen(asked.waiting_list))
            # Whoever asks where nobody answers keeps no connection from the others.
            asked.check_served(await self._store.workers())
            pipeline = self._redis.pipeline(transaction=True)
            asked.put(pipeline)
            await pipeline.execute()
            while time.monotonic() < deadline:
                popped = await self._redis.blpop([asked.answer_key], timeout=LOOK_AFTER_S)
                if popped is not None:
                    # A long one takes a while: others go on.
                    return await asyncio.to_thread(asked.read, popped)
                asked.check_served(await self._store.workers())
                pipeline = self._redis.pipeline(transaction=True)
                asked.look(pipeline)
                if asked.is_stranded(await pipeline.execute()):
                    asked.put_id(pipeline)
                    await pipeline.execute()
        raise asked.too_late()

    async def close(self) -> None:
        await asyncio.shield(self._redis.aclose())
