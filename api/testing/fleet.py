# Generated from api/testing/async_fleet.py by `make sync-client`; do not edit.
"""InMemoryFleet: a fake of FleetClient on the same base class."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Never

from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobArguments, check_unknown
from pagefleet.api.client.questions import Answer, PendingQuestion
from pagefleet.api.client.stream import StreamState
from pagefleet.api.client.synchronous.context import opens_stream
from pagefleet.api.client.synchronous.fleet import Fleet
from pagefleet.api.client.synchronous.inbox import Inbox
from pagefleet.api.client.synchronous.tasks import Tasks
from pagefleet.api.client.synchronous.token_stream import Source, TokenStream
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import ModelCard, WorkerStatus
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.testing.fake_job import FakeJob, FakeReader
from pagefleet.api.testing.fake_model import Reply, fake_card
from pagefleet.api.testing.fake_server import FakeServer


class InMemoryFleet(Fleet):
    """A fleet in this process: without Redis, workers or a model.

    Args:
        reply: returns the text that answers a request. If it raises a ``FleetError``, the job fails with it.
        models: the cards of the fleet's models; by default one that is called ``fake``.
        paused: queue jobs and answer none until :meth:`run` is called.
    """

    def __init__(
        self,
        reply: Reply = lambda request: "ok",
        *,
        models: Sequence[ModelCard] | None = None,
        paused: bool = False,
    ) -> None:
        self._server = FakeServer(reply, models if models is not None else [fake_card()], is_paused=paused)

    def run(self) -> None:
        """Answer all queued jobs in the order of their submission, and from now on each at its submit."""
        self._server.run()

    def open(self) -> None:
        """Do nothing: there are no connections."""

    def close(self) -> None:
        """Do nothing: there are no connections."""

    @opens_stream
    def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> TokenStream:
        check_unknown("attach", unknown)
        job = self._server.job(job_id)
        state = StreamState(job_id, after=after, keep=keep)
        state.feed_record(job.record())
        return TokenStream(state, FakeSource(self._server, job), job.prepared.card.name, idle_timeout)

    def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        record = self._server.job(job_id).record()
        return record if with_log else replace(record, entries=[])

    def cancel(self, job_id: str) -> bool:
        return self._server.job(job_id).cancel()

    def delete(self, job_id: str) -> None:
        self._server.delete(job_id)

    def card(self, model: str | None) -> ModelCard:
        return self._server.cards.resolve(model)

    def models(self) -> list[ModelCard]:
        return list(self._server.cards.cards)

    def workers(self) -> list[WorkerStatus]:
        """Return an empty list."""
        return []

    def status(self) -> FleetStatus:
        return self._server.status()

    def _ask(self, question: PendingQuestion) -> Answer:
        return self._server.tokenizer.answer(question.question)

    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream:
        prepared = self._server.prepare(job_id, fields)
        job = self._server.submit(prepared)
        if job is None:
            return self.attach(prepared.job_id, idle_timeout=idle_timeout)
        source = FakeSource(self._server, job)
        self._server.answer(job)
        request = prepared.request
        state = StreamState(prepared.job_id, num_choices=request.sampling.n, reading=request.chat_reading)
        return TokenStream(state, source, prepared.card.name, idle_timeout)

    def _start_all(self, calls: Sequence[JobArguments | FleetError]) -> list[TokenStream | FleetError]:
        return [call if isinstance(call, FleetError) else self._start_or_error(call) for call in calls]

    def _start_or_error(self, call: JobArguments) -> TokenStream | FleetError:
        try:
            return self._start(*call)
        except FleetError as error:
            return error


class FakeSource(Source):
    """The events of a job of a :class:`FakeServer`."""

    def __init__(self, server: FakeServer, job: FakeJob) -> None:
        self._server = server
        self._job = job
        self._inbox = Inbox()
        self._reader = FakeReader(job, self._inbox.put)
        self._tasks = Tasks()
        self._leave_when_dropped = weakref.finalize(self, self._reader.leave)

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return self._inbox.get(timeout_s)

    def read(self, position: LogPosition) -> JobRecord | None:
        return self._job.record()

    def resubmit(self) -> bool:
        return False

    def expire(self) -> None:
        self._job.expire()

    def cancel(self) -> None:
        self._job.cancel()

    def delete(self) -> None:
        self._server.delete(self._job.prepared.job_id)

    def keep_running(self, keep: bool) -> None:
        self._reader.keeps_running = keep

    def leave(self, after_s: float = 0.0) -> None:
        self._inbox.close()
        if after_s:
            self._leave_when_dropped.detach()
            self._tasks.call_later(after_s, self._reader.leave)
        else:
            self._reader.leave()

    def close(self) -> None:
        self.keep_running(True)
        self.leave()
