"""The connections of an asynchronous client that differ from a synchronous client's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pagefleet.api.protocol.async_job_store import AsyncJobStore
from pagefleet.api.protocol.connection import connect_async
from pagefleet.api.protocol.job_store import JobStore

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Holds one value. An event loop does not survive a fork, so there is nothing to renew."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._value = build()

    def get(self) -> T:
        return self._value


def blocking_store(store: AsyncJobStore) -> JobStore:
    """Return a store for blocking code, which runs in threads: Celery's publisher and result backend."""
    return JobStore(store.settings)


def question_connections(store: AsyncJobStore, max_connections: int) -> Any:
    """Return a Redis client for questions. Each holds a connection until its answer comes, and jobs must not
    wait for one. Further questions wait for a connection."""
    return connect_async(store.settings, max_connections)
