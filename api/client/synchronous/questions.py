# Generated from api/client/asynchronous/questions.py by `make sync-client`; do not edit.
"""Questions: sends a question to a model's workers and waits for the answer."""

from __future__ import annotations

import time
from typing import Final

from pagefleet.api.client.questions import ANSWER_WITHIN_S, LOOK_AFTER_S, Answer, PendingQuestion
from pagefleet.api.client.synchronous.resources import question_connections
from pagefleet.api.client.synchronous.tasks import Tasks
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.sync_io import in_thread

_MAX_CONNECTIONS: Final = 64


class Questions:
    """The protocol of questions is in :mod:`pagefleet.api.client.questions`."""

    def __init__(self, store: JobStore, tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._redis = question_connections(store, _MAX_CONNECTIONS)

    def ask(self, question: PendingQuestion) -> Answer:
        """Return the answer. Raises: FleetError: the worker's; NoAnswer, QueueFull, RedisUnavailable."""
        deadline = time.monotonic() + ANSWER_WITHIN_S
        with redis_errors(self._store.settings.url):
            question.check(self._redis.llen(question.waiting_list))
            # A question without a worker must not occupy a connection.
            question.check_served(self._store.workers())
            pipeline = self._redis.pipeline(transaction=True)
            question.put(pipeline)
            pipeline.execute()
            while time.monotonic() < deadline:
                popped = self._redis.blpop([question.answer_key], timeout=LOOK_AFTER_S)
                if popped is not None:
                    # Parsing a long answer takes a while.
                    return in_thread(question.read, popped)
                question.check_served(self._store.workers())
                pipeline = self._redis.pipeline(transaction=True)
                question.look(pipeline)
                if question.is_stranded(pipeline.execute()):
                    question.put_id(pipeline)
                    pipeline.execute()
        raise question.too_late()

    def close(self) -> None:
        self._tasks.finish(self._redis.close)
