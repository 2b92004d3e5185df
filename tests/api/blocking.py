"""Blocking: an asynchronous fleet for tests that are written for the synchronous one."""

from __future__ import annotations

import asyncio
import inspect

from pagefleet.api import AsyncTokenStream


class Blocking:
    """A fleet or a stream whose methods run on a loop until they are done."""

    def __init__(self, wrapped, loop: asyncio.AbstractEventLoop):
        self._wrapped = wrapped
        self._loop = loop

    def __getattr__(self, name):
        value = getattr(self._wrapped, name)
        return self._blocking(value) if callable(value) else value

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self._blocking(self._wrapped.__anext__)()
        except StopAsyncIteration:
            raise StopIteration from None

    def _blocking(self, function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                result = self._loop.run_until_complete(result)
            return Blocking(result, self._loop) if isinstance(result, AsyncTokenStream) else result

        return call
