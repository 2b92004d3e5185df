"""What ``async with`` does with clients and streams."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar


class _Closable(Protocol):
    async def close(self) -> None: ...


P = ParamSpec("P")
S = TypeVar("S", bound=_Closable)


class AsyncStreamContext(ABC):
    """Closes the stream at the end of an ``async with`` block."""

    @abstractmethod
    async def close(self) -> None: ...

    async def aclose(self) -> None:
        """For ``contextlib.aclosing``."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncClientContext(ABC):
    """Opens the client at the beginning of an ``async with`` block and closes it at the end."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class StreamCall(Coroutine[Any, Any, S], Generic[S]):
    """A call that returns a stream: ``stream = await call``, or ``async with call as stream``.

    It is a coroutine, so that ``asyncio.create_task`` takes it.
    """

    def __init__(self, call: Coroutine[Any, Any, S]) -> None:
        self._call = call
        self._stream: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._call.__await__()

    def send(self, value: Any) -> Any:
        return self._call.send(value)

    def throw(self, *error: Any) -> Any:
        return self._call.throw(*error)

    def close(self) -> None:
        self._call.close()

    async def __aenter__(self) -> S:
        self._stream = await self._call
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.close()


def opens_stream(function: Callable[P, Coroutine[Any, Any, S]]) -> Callable[P, StreamCall[S]]:
    """Let the caller of ``function`` use ``async with`` without a separate ``await``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> StreamCall[S]:
        return StreamCall(function(*args, **kwargs))

    _mark_coroutine_function(call)
    return call


def _mark_coroutine_function(function: Any) -> None:
    """Let ``iscoroutinefunction`` recognise ``function``, as mocks with a spec of the client need it."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    else:
        function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
