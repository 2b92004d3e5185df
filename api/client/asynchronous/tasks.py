"""AsyncTasks: work that continues if its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Undo = Callable[[BaseException | None], Coroutine[Any, Any, None]]


class AsyncTasks:
    """Runs work to its end, whether or not its caller still waits. :meth:`wait` waits for all of it."""

    def __init__(self) -> None:
        self._unfinished: set[asyncio.Task[Any]] = set()

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the blocking ``call`` returns."""
        return await asyncio.shield(self._start(asyncio.to_thread(call, *args, **kwargs)))

    async def finish(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what ``work`` returns."""
        return await asyncio.shield(self._start(work()))

    async def finish_or_undo(self, work: Callable[[], Coroutine[Any, Any, T]], undo: Undo) -> T:
        """Return what ``work`` returns.

        Args:
            undo: called when the work has ended, if the caller was cancelled before. It gets the error that
                the work failed with.
        """
        task = self._start(work())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._start(_undo(task, undo))
            raise

    def call_later(self, after_s: float, call: Callable[[], None]) -> None:
        """Call this after some time, unless the event loop ends before."""
        asyncio.get_running_loop().call_later(after_s, call)

    async def wait(self) -> None:
        while self._unfinished:
            await asyncio.wait(self._unfinished)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task


async def _undo(task: asyncio.Task[Any], undo: Undo) -> None:
    await asyncio.wait([task])
    await undo(None if task.cancelled() else task.exception())
