"""OperationBatch: the interface of AsyncOperationBatch. A caller's thread has one call at a time."""

from __future__ import annotations

from typing import TypeVar

from pagefleet.api.protocol.operation_types import Operation
from pagefleet.api.protocol.producer_store import ProducerStore

T = TypeVar("T")


class OperationBatch:
    def __init__(self, store: ProducerStore) -> None:
        self._store = store

    def run(self, call: Operation[T]) -> T:
        """Run one script, as :meth:`ProducerStore.run`."""
        return self._store.run(call)
