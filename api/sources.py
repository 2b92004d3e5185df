"""Where a synchronous stream's events come from: the process's reply channel, or an attached job's own."""

from __future__ import annotations

import contextlib
import queue
import time
import weakref
from typing import Any

from pagefleet.api import keys
from pagefleet.api.arguments import shown_request
from pagefleet.api.connection import connect, redis_errors
from pagefleet.api.connections import Connections, send_message
from pagefleet.api.errors import JobNotFound, RedisUnavailable
from pagefleet.api.fleet import Prepared, check_depth
from pagefleet.api.job_record import JobRecord
from pagefleet.api.last_seen import RESUBMIT_AFTER_S, LastSeen
from pagefleet.api.messages import split_events
from pagefleet.api.subscriber import Inbox
from pagefleet.api.token_stream import LiveEvent, Resync, Source


class OwnSource(Source):
    """A job that this process submitted: events come over the process's reply channel."""

    def __init__(self, live: Connections, prepared: Prepared) -> None:
        self._live = live
        self._prepared = prepared
        self._inbox: Inbox = queue.SimpleQueue()
        self._seen = LastSeen(live.store.settings.result_ttl_s)
        self._deliver = self._seen.on_the_way_to(self._inbox.put)
        self._listen()

    def submit(self) -> bool:
        """SUBMIT and ENQUEUE. False where the id existed already."""
        prepared, live = self._prepared, self._live
        try:
            submitted = live.store.submit(
                prepared.job_id,
                prepared.request,
                queue=prepared.queue,
                channel=live.channel,
                limits=prepared.limits,
                client_id=live.client_id,
            )
            check_depth(submitted, prepared)
            if submitted.created:
                self._enqueue()
        except Exception:
            self.close()
            raise
        return submitted.created

    def wait(self, timeout_s: float) -> LiveEvent | Resync | None:
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def read(self) -> JobRecord | None:
        record = self._live.store.read(self._prepared.job_id)
        self._seen.read(record)
        return record

    def resubmit(self) -> bool:
        """A server that lost its data gets the same job again: same id, same seed, same tokens."""
        # What was said of it at last may still be on its way.
        time.sleep(RESUBMIT_AFTER_S)
        if not self._seen.was_lost:
            return False
        self._listen()
        self.submit()
        return True

    def expire(self) -> None:
        self._live.expire(self._prepared.job_id)

    def cancel(self) -> None:
        self._live.cancel(self._prepared.job_id)

    def delete(self) -> None:
        self._live.delete(self._prepared.job_id)

    def close(self) -> None:
        self._stop_listening()

    def _listen(self) -> None:
        routes = self._live.subscriber
        routes.add(self._prepared.job_id, self._deliver)
        # A stream that its caller dropped half way must not leave its inbox behind, to be filled.
        self._stop_listening = weakref.finalize(self, routes.remove, self._prepared.job_id, self._deliver)

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
        except RedisUnavailable:
            # The caller is told that nothing was enqueued; make it true if the store can be reached.
            with contextlib.suppress(RedisUnavailable, JobNotFound):
                self._live.delete(prepared.job_id)
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

    def read(self) -> JobRecord | None:
        return self._live.store.read(self._job_id)

    def resubmit(self) -> bool:
        return False

    def expire(self) -> None:
        self._live.expire(self._job_id)

    def cancel(self) -> None:
        self._live.cancel(self._job_id)

    def delete(self) -> None:
        self._live.delete(self._job_id)

    def close(self) -> None:
        self._pubsub.close()
        self._redis.close()
