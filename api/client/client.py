"""FleetClient: a backend service's way into the fleet. Safe from threads, after fork, inside Celery tasks."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from pagefleet.api.broker.status import read_status
from pagefleet.api.client.connections import Connections
from pagefleet.api.client.fleet import Fleet
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S
from pagefleet.api.client.questions import Answer, Asked, ask
from pagefleet.api.client.sources import AttachedSource, OwnSource
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.token_stream import TokenStream
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import MAX_SEED, ModelCard
from pagefleet.api.protocol.job_errors import about, job_not_found
from pagefleet.api.protocol.prepared import prepare


class FleetClient(Fleet):
    """The fleet behind one Redis server.

    Connections are opened at the first call and once for each process: a client made before ``fork`` works
    in every child. Also a context manager.

    Args:
        settings: where the server is; by default from the environment (``REDIS_URL``), else a stack that
            ``pagefleet up`` keeps running here.
        redis_url: instead of ``settings``.
    """

    def __init__(self, settings: FleetSettings | None = None, *, redis_url: str | None = None) -> None:
        self.settings = settings or FleetSettings.load(redis_url=redis_url)
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        _CLIENTS.add(self)

    def attach(
        self, job_id: str, *, after: int = 0, idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S
    ) -> TokenStream:
        live = self._live
        with about(job_id):
            # First: whoever leaves now sees that somebody reads.
            source = AttachedSource(live, job_id)
            state = StreamState(job_id, after=after)
            try:
                is_there = live.store.watch(job_id, live.client_id)
                record = live.store.read(job_id) if is_there else None
                if record is None:
                    raise job_not_found(job_id)
            except FleetError:
                # Not a reader that has left: the caller may try again.
                source.close()
                raise
            state.feed_record(record)
            return TokenStream(state, source, record.model, idle_timeout)

    def cancel(self, job_id: str) -> bool:
        return self._live.cancel(job_id)

    def delete(self, job_id: str) -> None:
        self._live.delete(job_id)

    def models(self) -> list[ModelCard]:
        return self._live.store.cards()

    def status(self) -> FleetStatus:
        return read_status(self._live.store)

    def _card(self, model: str | None) -> ModelCard:
        return self._live.index(model).resolve(model)

    def _ask(self, asked: Asked) -> Answer:
        return ask(self._live.store, asked)

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        with self._lock:
            if self._connections is not None:
                self._connections.close()
            self._connections = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream:
        live = self._live
        model = fields.get("model")
        cards = live.index(model if isinstance(model, str) else None)
        prepared = prepare(
            cards, job_id, fields, secrets.randbelow(MAX_SEED), self.settings.max_request_bytes
        )
        source = OwnSource(live, prepared, is_drawn=job_id is None)
        if not source.submit():
            source.close()
            return self.attach(prepared.job_id, idle_timeout=idle_timeout)
        state = StreamState(prepared.job_id, num_choices=prepared.request.sampling.n)
        return TokenStream(state, source, prepared.card.name, idle_timeout)

    @property
    def _live(self) -> Connections:
        with self._lock:
            if self._connections is None:
                self._connections = Connections(self.settings)
            return self._connections

    def _forget(self) -> None:
        """In a forked child: the parent's connections are the parent's."""
        self._lock = threading.Lock()
        self._connections = None


_CLIENTS: Final[weakref.WeakSet[FleetClient]] = weakref.WeakSet()
"""Of this process. A hook at fork is never given back: there is one for all of them."""


def _forget_in_child() -> None:
    for client in list(_CLIENTS):
        client._forget()


os.register_at_fork(after_in_child=_forget_in_child)
