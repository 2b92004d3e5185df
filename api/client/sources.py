"""Where a synchronous stream's events come from: the process's reply channel, or an attached job's own."""

from __future__ import annotations

import time
import weakref
from typing import Any, Final

import redis

from pagefleet.api.broker.arguments import shown_request
from pagefleet.api.broker.sending import send_message
from pagefleet.api.client.connections import Connections
from pagefleet.api.client.inbox import Inbox
from pagefleet.api.client.last_seen import RESUBMIT_AFTER_S, LastSeen
from pagefleet.api.client.readers import Reader
from pagefleet.api.client.token_stream import LiveEvent, Resync, Source
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, JobNotFound, RedisUnavailable
from pagefleet.api.contract.messages import split_events
from pagefleet.api.protocol.connection import connect, redis_errors
from pagefleet.api.protocol.job_record import JobRecord, LogPosition
from pagefleet.api.protocol.operations import Submitted
from pagefleet.api.protocol.prepared import Prepared, check_submitted, submit_operation

SETTLE_FOR_S: Final = 1.0
"""For so long a submit whose outcome is unknown is sent again, under the same id."""
SETTLE_AGAIN_S: Final = 0.1


def leave_when_dropped(source: object, reader: Reader) -> weakref.finalize[..., Any]:
    """A stream that its caller dropped half way has left."""
    finalizer = weakref.finalize(source, reader.leave)
    finalizer.atexit = False
    return finalizer


def may_have_arrived(error: RedisUnavailable) -> bool:
    """Whether a call that failed so may have been obeyed: no reply came. What the server refuses it does not
    do."""
    return isinstance(error.__cause__, redis.ConnectionError | redis.TimeoutError | OSError)


def outcome_unknown(error: RedisUnavailable, job_id: str) -> RedisUnavailable:
    return RedisUnavailable(
        f"{error.message} The job may have been submitted. Call again with job_id={job_id!r}: that reads the "
        "job, or submits it if it is not there.",
        job_id=job_id,
    )


class OwnSource(Source):
    """A job that this process submitted: events come over the process's reply channel.

    Args:
        is_drawn: the caller gave no id and knows none before :meth:`submit` returns.
    """

    def __init__(self, live: Connections, prepared: Prepared, *, is_drawn: bool = False) -> None:
        self._live = live
        self._prepared = prepared
        self._is_drawn = is_drawn
        self._inbox = Inbox()
        self._seen = LastSeen(live.store.settings.result_ttl_s)
        self._reader = live.readers.add(prepared.job_id)
        leave_when_dropped(self, self._reader)
        routes, deliver = live.subscriber, self._seen.on_the_way_to(self._inbox.put)
        routes.add(prepared.job_id, deliver)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, routes.remove, prepared.job_id, deliver)

    def submit(self) -> bool:
        """SUBMIT and ENQUEUE. False where the id existed already.

        Raises:
            RedisUnavailable: it names the job, and says so where it may have been submitted all the same.
        """
        try:
            return self._send()
        except FleetError as error:
            self.close()
            error.job_id = error.job_id or self._prepared.job_id
            raise
        except BaseException:
            # Ctrl-C, or a time limit that a signal enforces: the caller gets no stream.
            if self._is_drawn:
                self.close()
                self._live.readers.orphan(self._prepared.job_id)
            else:
                self.leave()
            raise

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        return self._inbox.get(timeout_s)

    def read(self, position: LogPosition) -> JobRecord | None:
        record = self._live.store.read_after(self._prepared.job_id, position)
        self._seen.read(record)
        return record

    def resubmit(self) -> bool:
        """A server that lost its data gets the same job again: same id, same seed, same tokens."""
        # What was said of it at last may still be on its way.
        time.sleep(RESUBMIT_AFTER_S)
        if not self._seen.was_lost:
            return False
        self._send(again=True)
        return True

    def expire(self) -> None:
        self._live.expire(self._prepared.job_id)

    def cancel(self) -> None:
        self._live.cancel(self._prepared.job_id)

    def delete(self) -> None:
        self._live.delete(self._prepared.job_id)

    def stay(self, stays: bool) -> None:
        self._reader.stays = stays

    def leave(self) -> None:
        self._stop_listening()
        self._reader.leave()

    def close(self) -> None:
        self.stay(True)
        self.leave()

    def _send(self, *, again: bool = False) -> bool:
        submitted = self._submit(again)
        check_submitted(submitted, self._prepared)
        if submitted.created:
            self._enqueue()
        return submitted.created

    def _submit(self, again: bool) -> Submitted:
        prepared, store = self._prepared, self._live.store
        submit = submit_operation(prepared, self._live.channel, self._live.client_id, again=again)
        try:
            return store.run(submit)
        except RedisUnavailable as error:
            if not may_have_arrived(error):
                raise
        until = time.monotonic() + SETTLE_FOR_S
        while True:
            try:
                submitted = store.run(submit)
                if submitted.exists and store.reply_channel(prepared.job_id) == self._live.channel:
                    return Submitted(created=True)
                return submitted
            except RedisUnavailable as error:
                if time.monotonic() > until:
                    raise outcome_unknown(error, prepared.job_id) from error
                time.sleep(SETTLE_AGAIN_S)

    def _enqueue(self) -> None:
        prepared = self._prepared
        try:
            send_message(
                self._live.app,
                prepared.job_id,
                prepared.queue,
                prepared.request.priority,
                shown=shown_request(prepared.request, self._live.store.settings.prompt_chars),
            )
        except RedisUnavailable as error:
            # The caller is told that nothing was enqueued; make it true if the store can be reached.
            try:
                self._live.delete(prepared.job_id)
            except JobNotFound:
                pass
            except RedisUnavailable:
                raise outcome_unknown(error, prepared.job_id) from error
            raise


class AttachedSource(Source):
    """A job of anybody's: events come over the job's own channel, on a connection of this reader's."""

    def __init__(self, live: Connections, job_id: str) -> None:
        self._live = live
        self._job_id = job_id
        self._url = live.store.settings.url
        client: Any = connect(live.store.settings)
        self._redis = client
        with redis_errors(self._url):
            self._pubsub = client.pubsub()
            self._pubsub.subscribe(keys.job_channel(job_id))
        self._reader = live.readers.add(job_id)
        leave_when_dropped(self, self._reader)
        self._lines: list[LiveEvent] = []

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        if self._lines:
            return self._lines.pop(0)
        try:
            with redis_errors(self._url):
                message = self._pubsub.get_message(timeout=timeout_s)
        except RedisUnavailable:
            return Resync()
        if message is None:
            return None
        if message["type"] != "message":
            return Resync()
        self._lines = [LiveEvent(kind, body) for _id, kind, body in split_events(message["data"])]
        return self._lines.pop(0)

    def read(self, position: LogPosition) -> JobRecord | None:
        return self._live.store.read_after(self._job_id, position)

    def resubmit(self) -> bool:
        return False

    def expire(self) -> None:
        self._live.expire(self._job_id)

    def cancel(self) -> None:
        self._live.cancel(self._job_id)

    def delete(self) -> None:
        self._live.delete(self._job_id)

    def stay(self, stays: bool) -> None:
        self._reader.stays = stays

    def leave(self) -> None:
        self._pubsub.close()
        self._redis.close()
        self._reader.leave()

    def close(self) -> None:
        self.stay(True)
        self.leave()
