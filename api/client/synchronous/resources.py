"""The connections of a synchronous client that differ from an asynchronous client's."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from pagefleet.api.protocol.job_store import JobStore

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Holds a value that a forked child must not share with its parent: each process builds its own when it
    is first used, once for all threads."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._value: T | None = None
        _INSTANCES.add(self)

    def get(self) -> T:
        value = self._value
        if value is None:
            with self._lock:
                if self._value is None:
                    self._value = self._build()
                value = self._value
        return value

    def forget(self) -> None:
        """In a forked child: the value is the parent's, and another thread may have held the lock."""
        self._lock = threading.Lock()
        self._value = None


_INSTANCES: Final[weakref.WeakSet[PerProcess[Any]]] = weakref.WeakSet()
"""All instances of this process. A hook at fork cannot be removed, so one hook serves all."""


def _forget_in_child() -> None:
    for instance in list(_INSTANCES):
        instance.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def blocking_store(store: JobStore) -> JobStore:
    """The store itself blocks."""
    return store


def question_connections(store: JobStore, max_connections: int) -> Any:
    """Return the store's own Redis client: its number of connections is not limited."""
    return store.redis
