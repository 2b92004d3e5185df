# Generated from api/client/asynchronous/token_stream.py by `make sync-client`; do not edit.
"""TokenStream: what a caller iterates over, and Source, which does its I/O.

A source receives events from the client's reply channel, a job's own channel, or a fake. The decisions of the
stream are in :mod:`pagefleet.api.client.stream_loop`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import Self

from pagefleet.api.client.base_stream import BaseTokenStream
from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.stream import Chunk, StreamState
from pagefleet.api.client.stream_loop import Action
from pagefleet.api.client.synchronous.context import StreamContext
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.messages import JobResult
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.sync_io import sleep


class Source(ABC):
    """The I/O of a stream: the events of one job, and the server's state of it."""

    @abstractmethod
    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        """Return the next event, or None after ``timeout_s`` without one."""

    @abstractmethod
    def read(self, position: LogPosition) -> JobRecord | None:
        """Return the job's state and its log after a position, None if the server has no such job."""

    @abstractmethod
    def resubmit(self) -> bool:
        """Send a lost job again. Returns False if the job was not lost, or another client submitted it."""

    @abstractmethod
    def expire(self) -> None:
        """End the job if it still waits and its deadline has passed."""

    @abstractmethod
    def cancel(self) -> None: ...

    @abstractmethod
    def delete(self) -> None: ...

    @abstractmethod
    def keep_running(self, keep: bool) -> None:
        """Set whether the job continues after its reader leaves or is dropped."""

    @abstractmethod
    def leave(self, after_s: float = 0.0) -> None:
        """Stop listening. The job ends if this was its last reader, unless it is detached.

        Args:
            after_s: seconds for which the job still counts as read, so that another reader can come.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening. The job continues."""


class TokenStream(BaseTokenStream, StreamContext, Iterator[Chunk]):
    """The tokens of one job, each exactly once, even if workers die or connections are lost.

    At the end, iterating raises the job's error if it failed. A cancelled job raises nothing. After the idle
    timeout without a chunk it raises :class:`~pagefleet.api.contract.errors.StreamTimeout`.

    A job ends with its last reader, unless it is detached. The reader leaves with :meth:`close`, at the end
    of a ``with`` block, and when an unfinished stream is garbage collected. After a ``StreamTimeout`` and
    after :meth:`leave_running` the job continues.
    """

    def __init__(self, state: StreamState, source: Source, model: str, idle_timeout_s: float | None) -> None:
        super().__init__(state, source.keep_running, model, idle_timeout_s)
        self._source = source

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        loop = self._loop
        loop.start_call()
        while (step := loop.next_step()) is not None:
            if isinstance(step, Chunk):
                return step
            self._do(step)
        raise StopIteration

    def poll(self, timeout_s: float) -> Chunk | None:
        """Return the next chunk, or None at the end and after ``timeout_s`` without one.

        Poll again after None, unless :attr:`has_ended`. The idle timeout does not count here, and an outage
        of the server does not raise an error.

        Raises:
            FleetError: what the job failed with.
        """
        self._loop.start_call()
        until = time.monotonic() + timeout_s
        while (step := self._loop.next_step(until)) is not None:
            if isinstance(step, Chunk):
                return step
            self._do(step, until)
        return None

    def accepted(self, timeout_s: float) -> bool:
        """Wait until a worker has accepted the job, or the job has ended.

        Returns:
            False if neither happened within ``timeout_s``, as :meth:`poll` also in an outage of the server.

        Raises:
            FleetError: what the job was rejected or failed with.
        """
        until = time.monotonic() + timeout_s
        while not self._loop.is_accepted:
            step = self._loop.next_event_step(until)
            if step is None:
                return False
            self._do(step, until)
        if self._state.error is not None:
            self._end()
        return True

    def result(self) -> JobResult:
        """Read to the end and return everything.

        Raises:
            FleetError: what the job failed with, or ``StreamTimeout``.
        """
        for _ in self:
            pass
        return self._outcome()

    def text(self) -> str:
        """Read to the end and return the whole text of the first choice."""
        return (self.result()).text

    def cancel(self) -> None:
        """Stop the job. The stream then ends with finish_reason ``cancelled``."""
        self._loop.is_cancelled = True
        self._source.cancel()

    def delete(self) -> None:
        """Remove the job, its prompt, its tokens and its result, and stop it first if it has not ended."""
        self.leave_running()
        self._source.delete()

    def close(self, *, after_s: float = 0.0) -> None:
        """Stop reading. The job ends if it has no other reader, unless it is detached. Returns at once: the
        client reports it to the server.

        Args:
            after_s: seconds for which the job still counts as read, so that another reader can come.
        """
        if not self._loop.is_closed:
            self._loop.is_closed = True
            self._source.leave(after_s)

    def leave_running(self) -> str:
        """Stop reading. The job continues as long as this client lives, and longer if it is detached.

        Returns:
            The job's id, with which any client can ``attach`` to it.
        """
        if not self._loop.is_closed:
            self._loop.is_closed = True
            self._source.close()
        return self.job_id

    def _do(self, step: Action | float, until: float | None = None) -> None:
        if isinstance(step, float):
            event = self._source.wait(step)
            if self._loop.take(event):
                with suppress(FleetError):
                    self._source.cancel()
        elif step is Action.REPLAY:
            self._replay(until)
        else:
            self._end()

    def _end(self) -> None:
        self.leave_running()
        if self._state.error is not None:
            raise self._state.error

    def _replay(self, until: float | None) -> None:
        try:
            record = self._source.read(self._state.position)
            if record is not None:
                self._loop.take_record(record)
                if record.waits_with_deadline:
                    self._source.expire()
            elif self._source.resubmit():
                self._state.wants_replay = False
            else:
                raise self._lost()
        except RedisUnavailable as error:
            sleep(self._loop.retry_delay(error, until))
