"""AsyncQuestions: sends a question to a model's workers and waits for the answer."""

from __future__ import annotations

import time
from typing import Final

from pagefleet.api.client.asynchronous.resources import question_connections
from pagefleet.api.client.asynchronous.tasks import AsyncTasks
from pagefleet.api.client.questions import ANSWER_WITHIN_S, LOOK_AFTER_S, Answer, PendingQuestion
from pagefleet.api.protocol.async_io import in_thread
from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.connection import redis_errors

_MAX_CONNECTIONS: Final = 64


class AsyncQuestions:
    """The protocol of questions is in :mod:`pagefleet.api.client.questions`."""

    def __init__(self, store: AsyncJobStore, tasks: AsyncTasks) -> None:
        self._store = store
        self._tasks = tasks
        self._redis = question_connections(store, _MAX_CONNECTIONS)

    async def ask(self, question: PendingQuestion) -> Answer:
        """Return the answer. Raises: FleetError: the worker's; NoAnswer, QueueFull, RedisUnavailable."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        with redis_errors(self._store.settings.url):
            question.check(await self._redis.llen(question.waiting_list))
            # A question without a worker must not occupy a connection.
            question.check_served(await self._store.workers())
            pipeline = self._redis.pipeline(transaction=True)
            question.put(pipeline)
            await pipeline.execute()
            while time.monotonic() < deadline:
                popped = await self._redis.blpop([question.answer_key], timeout=LOOK_AFTER_S)
                if popped is not None:
                    # Parsing a long answer takes a while.
                    return await in_thread(question.read, popped)
                question.check_served(await self._store.workers())
                pipeline = self._redis.pipeline(transaction=True)
                question.look(pipeline)
                if question.is_stranded(await pipeline.execute()):
                    question.put_id(pipeline)
                    await pipeline.execute()
        raise question.too_late()

    async def close(self) -> None:
        await self._tasks.finish(self._redis.aclose)
