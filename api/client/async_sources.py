"""Where an asynchronous stream's events come from: the client's reply channel, or an attached job's own."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import Any

from pagefleet.api.broker.arguments import shown_request
from pagefleet.api.broker.sending import send_message
from pagefleet.api.client.async_connections import AsyncConnections
from pagefleet.api.client.inbox import AsyncInbox
from pagefleet.api.client.last_seen import RESUBMIT_AFTER_S, LastSeen
from pagefleet.api.client.readers import Reader
from pagefleet.api.client.sources import (
    SETTLE_AGAIN_S,
    SETTLE_FOR_S,
    leave_when_dropped,
    may_have_arrived,
    outcome_unknown,
)
from pagefleet.api.client.token_stream import AsyncSource, LiveEvent, Resync
from pagefleet.api.contract.errors import FleetError, JobNotFound, RedisUnavailable
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.operations import Submitted
from pagefleet.api.protocol.prepared import Prepared, check_submitted, submit_operation


def leave_after(after_s: float, reader: Reader, when_dropped: weakref.finalize[..., Any]) -> None:
    """Until then the reader's place is kept: it may come back as another one."""
    if after_s:
        when_dropped.detach()
        asyncio.get_running_loop().call_later(after_s, reader.leave)
    else:
        reader.leave()


class AsyncOwnSource(AsyncSource):
    """A job that this client submitted: events come over the client's reply channel.

    Args:
        is_drawn: nobody knows the id before :meth:`submit` returns.
    """

    def __init__(self, live: AsyncConnections, prepared: Prepared, *, is_drawn: bool = False) -> None:
        self._live = live
        self._prepared = prepared
        self._is_drawn = is_drawn
        self._inbox = AsyncInbox()
        self._seen = LastSeen(live.store.settings.result_ttl_s)
        self._reader = live.readers.add(prepared.job_id)
        self._leave_when_dropped = leave_when_dropped(self, self._reader)
        routes, deliver = live.subscriber, self._seen.on_the_way_to(self._inbox.put)
        routes.add(prepared.job_id, deliver)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, routes.remove, prepared.job_id, deliver)

    async def submit(self) -> bool:
        """SUBMIT and ENQUEUE. False where the id existed already. If the caller is cancelled meanwhile, both
        go on to their end and are then undone.

        Raises:
            RedisUnavailable: it names the job, and says so where it may have been submitted all the same.
        """
        sending = self._live.to_the_end(self._send())
        try:
            return await asyncio.shield(sending)
        except FleetError as error:
            await self.close()
            error.job_id = error.job_id or self._prepared.job_id
            raise
        except asyncio.CancelledError:
            self._live.to_the_end(self._undo(sending))
            raise

    async def _undo(self, sending: asyncio.Task[bool]) -> None:
        try:
            await sending
        except RedisUnavailable as error:
            if not may_have_arrived(error):
                await self.close()
                return
        except FleetError:
            await self.close()
            return
        if self._is_drawn:
            await self.close()
            self._live.readers.orphan(self._prepared.job_id)
        else:
            await self.leave()

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return await self._inbox.get(timeout_s)

    async def read(self, position: LogPosition) -> JobRecord | None:
        record = await self._live.store.read_after(self._prepared.job_id, position)
        self._seen.read(record)
        return record

    async def resubmit(self) -> bool:
        # What was said of it at last may still be on its way.
        await asyncio.sleep(RESUBMIT_AFTER_S)
        if not self._seen.was_lost:
            return False
        await asyncio.shield(self._live.to_the_end(self._send(again=True)))
        return True

    async def expire(self) -> None:
        await self._live.expire(self._prepared.job_id)

    async def cancel(self) -> None:
        await self._live.cancel(self._prepared.job_id)

    async def delete(self) -> None:
        await self._live.delete(self._prepared.job_id)

    def stay(self, stays: bool) -> None:
        self._reader.stays = stays

    async def leave(self, after_s: float = 0.0) -> None:
        self._inbox.close()
        self._stop_listening()
        leave_after(after_s, self._reader, self._leave_when_dropped)

    async def close(self) -> None:
        self.stay(True)
        await self.leave()

    async def _send(self, *, again: bool = False) -> bool:
        submitted = await self._submit(again)
        check_submitted(submitted, self._prepared)
        if submitted.created:
            await self._enqueue()
        return submitted.created

    async def _submit(self, again: bool) -> Submitted:
        prepared, store = self._prepared, self._live.store
        submit = submit_operation(prepared, self._live.channel, self._live.client_id, again=again)
        try:
            return await store.run(submit)
        except RedisUnavailable as error:
            if not may_have_arrived(error):
                raise
        until = time.monotonic() + SETTLE_FOR_S
        while True:
            try:
                submitted = await store.run(submit)
                if submitted.exists and await store.reply_channel(prepared.job_id) == self._live.channel:
                    return Submitted(created=True)
                return submitted
            except RedisUnavailable as error:
                if time.monotonic() > until:
                    raise outcome_unknown(error, prepared.job_id) from error
                await asyncio.sleep(SETTLE_AGAIN_S)

    async def _enqueue(self) -> None:
        prepared = self._prepared
        try:
            await asyncio.to_thread(
                send_message,
                self._live.app,
                prepared.job_id,
                prepared.queue,
                prepared.request.priority,
                shown=shown_request(prepared.request, self._live.store.settings.prompt_chars),
            )
        except RedisUnavailable as error:
            try:
                with contextlib.suppress(JobNotFound):
                    await self._live.delete(prepared.job_id)
            except RedisUnavailable:
                raise outcome_unknown(error, prepared.job_id) from error
            raise


class AsyncAttachedSource(AsyncSource):
    """A job of anybody's: events come over the job's own channel, on the connection of all this client's
    streams."""

    def __init__(self, live: AsyncConnections, job_id: str) -> None:
        self._live = live
        self._job_id = job_id
        self._inbox = AsyncInbox()
        self._reader = live.readers.add(job_id)
        self._leave_when_dropped = leave_when_dropped(self, self._reader)
        self._stop_listening: weakref.finalize[..., AsyncAttachedSource] | None = None

    async def open(self) -> None:
        subscriber = self._live.subscriber
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, subscriber.unwatch, self._job_id, self._inbox.put)
        await subscriber.watch(self._job_id, self._inbox.put)

    async def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return await self._inbox.get(timeout_s)

    async def read(self, position: LogPosition) -> JobRecord | None:
        return await self._live.store.read_after(self._job_id, position)

    async def resubmit(self) -> bool:
        return False

    async def expire(self) -> None:
        await self._live.expire(self._job_id)

    async def cancel(self) -> None:
        await self._live.cancel(self._job_id)

    async def delete(self) -> None:
        await self._live.delete(self._job_id)

    def stay(self, stays: bool) -> None:
        self._reader.stays = stays

    async def leave(self, after_s: float = 0.0) -> None:
        self._inbox.close()
        if self._stop_listening is not None:
            self._stop_listening()
        leave_after(after_s, self._reader, self._leave_when_dropped)

    async def close(self) -> None:
        self.stay(True)
        await self.leave()
