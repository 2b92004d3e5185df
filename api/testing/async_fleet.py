"""AsyncInMemoryFleet: a fake of AsyncFleetClient on the same base class."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Never

from pagefleet.api.client.asynchronous.context import opens_stream
from pagefleet.api.client.asynchronous.fleet import AsyncFleet
from pagefleet.api.client.asynchronous.inbox import AsyncInbox
from pagefleet.api.client.asynchronous.tasks import AsyncTasks
from pagefleet.api.client.asynchronous.token_stream import AsyncSource, AsyncTokenStream
from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobArguments, check_unknown
from pagefleet.api.client.questions import Answer, PendingQuestion
from pagefleet.api.client.stream import StreamState
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import ModelCard, WorkerStatus
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.testing.fake_job import FakeJob, FakeReader
from pagefleet.api.testing.fake_model import Reply, fake_card
from pagefleet.api.testing.fake_server import FakeServer


class AsyncInMemoryFleet(AsyncFleet):
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

    async def open(self) -> None:
        """Do nothing: there are no connections."""

    async def close(self) -> None:
        """Do nothing: there are no connections."""

    @opens_stream
    async def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> AsyncTokenStream:
        check_unknown("attach", unknown)
        job = self._server.job(job_id)
        state = StreamState(job_id, after=after, keep=keep)
        state.feed_record(job.record())
        return AsyncTokenStream(
            state, AsyncFakeSource(self._server, job), job.prepared.card.name, idle_timeout
        )

    async def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        record = self._server.job(job_id).record()
        return record if with_log else replace(record, entries=[])

    async def cancel(self, job_id: str) -> bool:
        return self._server.job(job_id).cancel()

    async def delete(self, job_id: str) -> None:
        self._server.delete(job_id)

    async def card(self, model: str | None) -> ModelCard:
        return self._server.cards.resolve(model)

    async def models(self) -> list[ModelCard]:
        return list(self._server.cards.cards)

    async def workers(self) -> list[WorkerStatus]:
        """Return an empty list."""
        return []

    async def status(self) -> FleetStatus:
        return self._server.status()

    async def _ask(self, question: PendingQuestion) -> Answer:
        return self._server.tokenizer.answer(question.question)

    async def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> AsyncTokenStream:
        prepared = self._server.prepare(job_id, fields)
        job = self._server.submit(prepared)
        if job is None:
            return await self.attach(prepared.job_id, idle_timeout=idle_timeout)
        source = AsyncFakeSource(self._server, job)
        self._server.answer(job)
        request = prepared.request
        state = StreamState(prepared.job_id, num_choices=request.sampling.n, reading=request.chat_reading)
        return AsyncTokenStream(state, source, prepared.card.name, idle_timeout)

    async def _start_all(
        self, calls: Sequence[JobArguments | FleetError]
    ) -> list[AsyncTokenStream | FleetError]:
        return [call if isinstance(call, FleetError) else await self._start_or_error(call) for call in calls]

    async def _start_or_error(self, call: JobArguments) -> AsyncTokenStream | FleetError:
        try:
            return await self._start(*call)
        except FleetError as error:
            return error


class AsyncFakeSource(AsyncSource):
    """The events of a job of a :class:`FakeServer`."""

    def __init__(self, server: FakeServer, job: FakeJob) -> None:
        self._server = server
        self._job = job
        self._inbox = AsyncInbox()
        self._reader = FakeReader(job, self._inbox.put)
        self._tasks = AsyncTasks()
        self._leave_when_dropped = weakref.finalize(self, self._reader.leave)

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return await self._inbox.get(timeout_s)

    async def read(self, position: LogPosition) -> JobRecord | None:
        return self._job.record()

    async def resubmit(self) -> bool:
        return False

    async def expire(self) -> None:
        self._job.expire()

    async def cancel(self) -> None:
        self._job.cancel()

    async def delete(self) -> None:
        self._server.delete(self._job.prepared.job_id)

    def keep_running(self, keep: bool) -> None:
        self._reader.keeps_running = keep

    async def leave(self, after_s: float = 0.0) -> None:
        self._inbox.close()
        if after_s:
            self._leave_when_dropped.detach()
            self._tasks.call_later(after_s, self._reader.leave)
        else:
            self._reader.leave()

    async def close(self) -> None:
        self.keep_running(True)
        await self.leave()
