"""What a caller iterates: the chunks of one job, from any source of events, synchronous or not.

A source hides where events come from (a Redis channel, an attached channel, a fake); the streams here
decide when to wait, when to look into the log, and when to give up.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from pagefleet.api.client.stream import SILENCE_S, Chunk, StreamState
from pagefleet.api.contract.errors import FleetError, JobLost, RedisUnavailable, StreamTimeout
from pagefleet.api.contract.messages import JobResult
from pagefleet.api.protocol.job_record import JobRecord, LogPosition

_RETRY_S: Final = 0.2


class LiveEvent(NamedTuple):
    """One line of a channel."""

    kind: str
    body: str


class Resync:
    """The channel was connected anew: something may have been missed."""


class Source(ABC):
    """Where one job's events come from, and how to ask the server about it."""

    @abstractmethod
    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        """The next event, or None after ``timeout_s`` of silence."""

    @abstractmethod
    def read(self, position: LogPosition) -> JobRecord | None:
        """State of the job, and its log behind a position; None if the server knows it no more."""

    @abstractmethod
    def resubmit(self) -> bool:
        """Sends the same job again; false where this reader is not its producer."""

    @abstractmethod
    def expire(self) -> None:
        """Ends the job where it still waits although its deadline has passed."""

    @abstractmethod
    def cancel(self) -> None: ...

    @abstractmethod
    def delete(self) -> None: ...

    @abstractmethod
    def stay(self, stays: bool) -> None:
        """Whether the job goes on although its reader leaves, also one that is dropped."""

    @abstractmethod
    def leave(self) -> None:
        """Stops listening; the job ends if this was its last reader, unless it is detached."""

    @abstractmethod
    def close(self) -> None:
        """Stops listening; the job goes on."""


class AsyncSource(ABC):
    """:class:`Source`, awaited."""

    @abstractmethod
    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None: ...

    @abstractmethod
    async def read(self, position: LogPosition) -> JobRecord | None: ...

    @abstractmethod
    async def resubmit(self) -> bool: ...

    @abstractmethod
    async def expire(self) -> None: ...

    @abstractmethod
    async def cancel(self) -> None: ...

    @abstractmethod
    async def delete(self) -> None: ...

    @abstractmethod
    def stay(self, stays: bool) -> None: ...

    @abstractmethod
    async def leave(self, after_s: float = 0.0) -> None:
        """Args: after_s: the job only ends where nobody has come to read it after so long."""

    @abstractmethod
    async def close(self) -> None: ...


class _Patience:
    """How long a reader still waits for its next chunk: ``timeout_s``, forever if None.

    What the caller does between two chunks is not waiting: the clock starts anew with each of its calls.

    Args:
        stay: is told whether the job goes on although its reader leaves: at the end of the patience.
    """

    def __init__(self, job_id: str, timeout_s: float | None, stay: Callable[[bool], None]) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._stay = stay
        self.renew()

    def renew(self) -> None:
        self._since = time.monotonic()
        self._stay(False)

    def next_wait(self) -> float:
        """Seconds to wait for the next event.

        Raises:
            StreamTimeout: the caller's patience is at its end.
        """
        if self._timeout_s is None:
            return SILENCE_S
        left = self._since + self._timeout_s - time.monotonic()
        if left <= 0:
            self._stay(True)
            raise StreamTimeout(
                f"Nothing came from job {self._job_id} for {self._timeout_s:g} s; it is still queued or "
                "running and can be read later with attach().",
                job_id=self._job_id,
            )
        return min(left, SILENCE_S)

    def outlasts(self, error: RedisUnavailable) -> None:
        """Lets an outage of the server pass, until the patience is at its end: then raises the outage."""
        try:
            self.next_wait()
        except StreamTimeout:
            raise error from None


def _take(state: StreamState, event: LiveEvent | Resync | None) -> None:
    if isinstance(event, LiveEvent):
        state.feed_line(event.kind, event.body)
    else:
        state.wants_replay = True


class _StreamBase:
    def __init__(
        self, state: StreamState, source: Source | AsyncSource, model: str, timeout_s: float | None
    ) -> None:
        self.job_id = state.job_id
        self.model = model
        self._state = state
        self._patience = _Patience(state.job_id, timeout_s, source.stay)
        self._closed = False
        self._cancelled = False

    @property
    def num_prompt_tokens(self) -> int | None:
        """Known once the worker has accepted the job."""
        return self._state.num_prompt_tokens

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt's tokens: found in the prefix cache. Known with the first token."""
        return self._state.num_cached_tokens

    @property
    def num_tokens(self) -> int:
        """Generated so far, as far as it has been read: of all choices together."""
        return self._state.num_tokens

    def finish(self, choice: int) -> tuple[str | None, str | int | None]:
        """Why a choice of an ended job ended, and what stopped it."""
        return self._state.finish(choice)

    def text_of(self, choice: int, num_tokens: int) -> str:
        """What the first tokens of a choice say, as far as they have come."""
        return self._state.text_of(choice, num_tokens)

    def _outcome(self) -> JobResult:
        """Raises the job's error, also where the iteration has raised it before."""
        if self._state.error is not None:
            raise self._state.error
        return self._state.result(self.model)

    def _lost(self) -> JobLost:
        return JobLost(
            f"The server knows job {self.job_id} no more: it was restarted without its data, or the result "
            "expired.",
            job_id=self.job_id,
        )


class TokenStream(_StreamBase, Iterator[Chunk]):
    """The tokens of one job, each exactly once, whatever happens to workers and connections.

    Iterating raises the job's error at the end if it failed,
    :class:`~pagefleet.api.contract.errors.StreamTimeout` after the caller's timeout without a chunk,
    and nothing for a cancelled job.

    A job ends with its last reader, unless it is detached: :meth:`close`, the end of a ``with`` block and the
    collection of a stream that nobody holds any more all leave it. After a ``StreamTimeout`` and after
    :meth:`leave_running` the job goes on.
    """

    def __init__(self, state: StreamState, source: Source, model: str, timeout_s: float | None) -> None:
        super().__init__(state, source, model, timeout_s)
        self._source = source

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> Chunk:
        self._patience.renew()
        while not self._closed:
            chunk = self._state.pop()
            if chunk is not None:
                return chunk
            if self._state.ended:
                self._end()
            elif self._state.wants_replay:
                self._replay()
            else:
                event = self._source.wait(self._patience.next_wait())
                _take(self._state, event)
                if isinstance(event, Resync) and self._cancelled:
                    self._cancel_again()
        raise StopIteration

    def result(self) -> JobResult:
        """Reads on to the end and returns everything.

        Raises:
            FleetError: what the job failed with, or ``StreamTimeout``.
        """
        for _ in self:
            pass
        return self._outcome()

    def text(self) -> str:
        """The whole text of the first choice; reads on to the end."""
        return self.result().text

    def cancel(self) -> None:
        """Stops the job; the stream then ends with finish_reason ``cancelled``."""
        self._cancelled = True
        self._source.cancel()

    def delete(self) -> None:
        """Removes the job, its prompt, its tokens and its result; stops it first where it has not ended."""
        self.leave_running()
        self._source.delete()

    def _cancel_again(self) -> None:
        """The server may have been restarted without its last second, the cancel in it."""
        with suppress(FleetError):
            self._source.cancel()

    def close(self) -> None:
        """Stops reading; the job ends if nobody else reads it, unless it is detached. Returns at once: the
        client tells the server."""
        if not self._closed:
            self._closed = True
            self._source.leave()

    def leave_running(self) -> str:
        """Stops reading; the job goes on, and :meth:`attach` of this client or another one reads it by the id
        that is returned. It goes on for as long as this client lives: only a detached one needs nobody."""
        if not self._closed:
            self._closed = True
            self._source.close()
        return self.job_id

    def _end(self) -> None:
        self.leave_running()
        if self._state.error is not None:
            raise self._state.error

    def _replay(self) -> None:
        try:
            record = self._source.read(self._state.position)
            if record is not None:
                self._state.feed_record(record)
                if record.waits_with_deadline:
                    self._source.expire()
            elif self._source.resubmit():
                self._state.wants_replay = False
            else:
                raise self._lost()
        except RedisUnavailable as error:
            self._patience.outlasts(error)
            time.sleep(_RETRY_S)


class AsyncTokenStream(_StreamBase, AsyncIterator[Chunk]):
    """:class:`TokenStream` for ``async for``."""

    def __init__(self, state: StreamState, source: AsyncSource, model: str, timeout_s: float | None) -> None:
        super().__init__(state, source, model, timeout_s)
        self._source = source

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __anext__(self) -> Chunk:
        self._patience.renew()
        while not self._closed:
            chunk = self._state.pop()
            if chunk is not None:
                return chunk
            if self._state.ended:
                await self._end()
            elif self._state.wants_replay:
                await self._replay()
            else:
                await self._hear(self._patience.next_wait())
        raise StopAsyncIteration

    @property
    def has_ended(self) -> bool:
        """Nothing more will come: the job has ended and all of it was read, or the stream was closed."""
        return self._closed

    async def poll(self, timeout_s: float) -> Chunk | None:
        """The next chunk, or None: at the end, and where none came for so long. Then ask again: unlike the
        stream's own timeout this is no fault, and an outage of the server is waited for.

        Raises:
            FleetError: what the job failed with.
        """
        self._patience.renew()
        until = time.monotonic() + timeout_s
        while not self._closed:
            chunk = self._state.pop()
            if chunk is not None:
                return chunk
            if self._state.ended:
                await self._end()
            elif (left_s := until - time.monotonic()) <= 0:
                return None
            else:
                await self._hear(left_s)
        return None

    async def accepted(self, timeout_s: float) -> bool:
        """Waits until a worker has accepted the job, or it has ended; false where neither came in time.

        Raises:
            FleetError: what the job was rejected or failed with.
        """
        until = time.monotonic() + timeout_s
        while self._state.num_prompt_tokens is None and not self._state.ended:
            if self._closed:
                return False
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            await self._hear(left_s)
        if self._state.error is not None:
            await self._end()
        return True

    async def _hear(self, timeout_s: float) -> None:
        """One event, or one look into the log."""
        if self._state.wants_replay:
            await self._replay()
            return
        event = await self._source.wait(min(timeout_s, SILENCE_S))
        _take(self._state, event)
        if isinstance(event, Resync) and self._cancelled:
            await self._cancel_again()

    async def result(self) -> JobResult:
        """Reads on to the end and returns everything."""
        async for _ in self:
            pass
        return self._outcome()

    async def text(self) -> str:
        """The whole text of the first choice; reads on to the end."""
        return (await self.result()).text

    async def cancel(self) -> None:
        """Stops the job; the stream then ends with finish_reason ``cancelled``."""
        self._cancelled = True
        await self._source.cancel()

    async def delete(self) -> None:
        """Removes the job, its prompt, its tokens and its result; stops it first where it has not ended."""
        await self.leave_running()
        await self._source.delete()

    async def _cancel_again(self) -> None:
        with suppress(FleetError):
            await self._source.cancel()

    async def close(self, *, after_s: float = 0.0) -> None:
        """See :meth:`TokenStream.close`.

        Args:
            after_s: the job only ends where nobody has come to read it after so long.
        """
        if not self._closed:
            self._closed = True
            await self._source.leave(after_s)

    async def aclose(self) -> None:
        """For ``contextlib.aclosing``."""
        await self.close()

    async def leave_running(self) -> str:
        """See :meth:`TokenStream.leave_running`."""
        if not self._closed:
            self._closed = True
            await self._source.close()
        return self.job_id

    async def _end(self) -> None:
        await self.leave_running()
        if self._state.error is not None:
            raise self._state.error

    async def _replay(self) -> None:
        try:
            record = await self._source.read(self._state.position)
            if record is not None:
                self._state.feed_record(record)
                if record.waits_with_deadline:
                    await self._source.expire()
            elif await self._source.resubmit():
                self._state.wants_replay = False
            else:
                raise self._lost()
        except RedisUnavailable as error:
            self._patience.outlasts(error)
            await asyncio.sleep(_RETRY_S)
