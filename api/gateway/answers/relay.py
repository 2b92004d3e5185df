"""Relay: writes the tokens of an answer's jobs as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pagefleet.api.chat.choice_reader import ChoiceReader
from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.gateway.answers.gather_all import gather_all
from pagefleet.api.gateway.answers.shape import Shape, finish_fields, usage
from pagefleet.api.gateway.http import sse
from pagefleet.api.gateway.http.errors import api_error

Write = Callable[[bytes], Awaitable[None]]


class Relay:
    """
    Args:
        streams: the jobs, each with ``num_choices`` choices, in the order of the answer's choices.
        position: what the reader has received already; zero starts with the openings.
        keep_alive_s: send a comment after this time without a token.
        on_failure: called if one of the jobs has failed, before the error is sent.
        can_return: the reader can continue after a lost connection, because it asked for positions
            (``include_ids``) or reads a job by its id. Only its events have ids.
    """

    def __init__(
        self,
        streams: Sequence[AsyncTokenStream],
        num_choices: int,
        shape: Shape,
        position: sse.Position,
        keep_alive_s: float,
        on_failure: Callable[[], Awaitable[None]],
        *,
        can_return: bool,
    ) -> None:
        self.streams = streams
        self.num_choices = num_choices
        self.can_return = can_return
        self._shape = shape
        self._position = position
        self._keep_alive_s = keep_alive_s
        self._on_failure = on_failure
        self._finished: set[int] = set()
        self._readers = [shape.reader(choice) for choice in range(len(position.counts))]
        self._unread = {choice for choice, count in enumerate(position.counts) if count > 0}
        # An id counts the tokens of all events up to its own, so a task that advances the position must write
        # its event before the others. The lock is fair: no job waits until a different one ends.
        self._turn = asyncio.Lock()
        self._head = sse.head_of(shape.head(shape.chunk_object))

    async def run(self, write: Write) -> None:
        """Write the events of all jobs until they end."""
        try:
            await self._open(write)
            if len(self.streams) == 1:
                await self._relay(0, write)
            else:
                await gather_all(self._relay(index, write) for index in range(len(self.streams)))
        except FleetError as error:
            await self._on_failure()
            await write(sse.event(api_error(error, self._shape.names).body))
            await write(sse.DONE)
            return
        if self._position.usage:
            await self._send([], write, usage=self._used())
        await write(sse.DONE)

    async def _open(self, write: Write) -> None:
        for choice, count in enumerate(self._position.counts):
            opening = self._shape.opening(choice)
            if count == 0 and opening is not None:
                await self._send([opening], write)

    async def _relay(self, index: int, write: Write) -> None:
        stream = self.streams[index]
        first = index * self.num_choices
        while not stream.has_ended:
            chunk = await stream.poll(self._keep_alive_s)
            if chunk is not None:
                await self._send_tokens(first + chunk.choice, chunk, write)
            elif not stream.has_ended:
                async with self._turn:
                    await write(sse.KEEP_ALIVE)
        for choice in range(self.num_choices):
            async with self._turn:
                await self._finish(first + choice, *stream.finish(choice), write)

    async def _send_tokens(self, choice: int, chunk: Chunk, write: Write) -> None:
        async with self._turn:
            reader = self._reader(choice)
            self._position.counts[choice] = chunk.end
            delta = None if reader is None else reader.feed(chunk.text)
            has_text = bool(chunk.text if delta is None else delta)
            content = None
            if has_text or chunk.logprobs or chunk.prompt_logprobs or self._position.token_ids:
                content = self._shape.tokens(choice, chunk, delta)
            of_prompt = self._shape.of_prompt(chunk) if choice % self.num_choices == 0 else {}
            if chunk.finish_reason is not None:
                reason = (chunk.finish_reason, self._stop_reason(choice))
                await self._finish(choice, *reason, write, content, of_prompt)
            elif content is not None:
                await self._send([content], write, **of_prompt)

    def _reader(self, choice: int) -> ChoiceReader | None:
        """Return the reader of the choice, after it has parsed the text that the client has already."""
        reader, index = self._readers[choice], choice // self.num_choices
        if reader is not None and choice in self._unread:
            self._unread.remove(choice)
            had = self._position.counts[choice]
            reader.feed(self.streams[index].text_of(choice % self.num_choices, had))
        return reader

    def _stop_reason(self, choice: int) -> str | int | None:
        index, own = divmod(choice, self.num_choices)
        return self.streams[index].finish(own)[1]

    async def _finish(
        self,
        choice: int,
        reason: str | None,
        stop_reason: str | int | None,
        write: Write,
        content: dict[str, Any] | None = None,
        of_prompt: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Write why a choice ended, in the event of its last text.

        Args:
            content: the choice's last tokens, if they have not been sent.
        """
        if choice in self._finished:
            return
        self._finished.add(choice)
        reader = self._reader(choice)
        if reader is not None:
            rest = reader.end()
            if rest and choice not in self._position.ended:
                if content is not None:
                    await self._send([content], write, **of_prompt)
                    of_prompt = {}
                self._position = self._position._replace(ended=self._position.ended | {choice})
                content = self._shape.rest(choice, rest)
            reason = reader.finish_reason(reason)
        last = self._shape.finish(choice) if content is None else content
        await self._send([{**last, **finish_fields(reason, stop_reason)}], write, **of_prompt)

    async def _send(self, choices: list[dict[str, Any]], write: Write, **more: Any) -> None:
        data = {"choices": choices, **more}
        if self._position.usage:
            # As in OpenAI's API, every event has the field if usage is requested.
            data.setdefault("usage", self._used() if self._position.continuous_usage else None)
        position = None
        if self.can_return:
            position = data["position"] = str(self._position)
        await write(sse.event(data, position, head=self._head))

    def _used(self) -> dict[str, Any]:
        return usage(
            sum(stream.num_prompt_tokens or 0 for stream in self.streams),
            sum(self._position.counts),
            sum(stream.num_cached_tokens for stream in self.streams),
        )
