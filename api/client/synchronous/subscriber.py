"""Subscriber: one pub/sub connection for all streams of a client process, read by a thread."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from pagefleet.api.client.backoff import Backoff
from pagefleet.api.client.events import Deliver
from pagefleet.api.client.routes import (
    BEAT_EVERY_S,
    RECONNECT_BASE_S,
    RECONNECT_CAP_S,
    SUBSCRIBER_FAILED,
    Routes,
)
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.protocol.connection import connect, redis_errors

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.25
"""After this time at most, abandoned jobs are reported and channels left."""


class Subscriber:
    """Listens to the client's reply channel and to the channels of the jobs that its streams are attached to.
    After a lost connection it connects again and lets every stream read its log.

    An unexpected error is logged, and the thread listens again: without it no stream would receive events.
    Only the thread uses the pub/sub connection. What other threads and finalizers call takes no lock, since a
    fork could leave it held in the child.

    Args:
        channel: the reply channel.
        beat: renews the client's lease. Called every few seconds; fails if the server does.
        report: reports abandoned jobs to the server. Called several times a second. It returns False if the
            server was unavailable.
    """

    def __init__(
        self,
        settings: FleetSettings,
        channel: str,
        beat: Callable[[], None],
        report: Callable[[], bool] = lambda: True,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._beat = beat
        self._report = report
        self._report_at = 0.0
        self.routes = Routes()
        self._watched = Routes()
        self._client: Any = None
        self._ready = threading.Event()
        self._closed = threading.Event()
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Return after the server has confirmed the subscription.

        Raises:
            RedisUnavailable: within the connect timeout. Any other error that the thread failed with.
        """
        self._client = connect(self._settings)
        self._failure = None
        # A thread that is still ending keeps its own events.
        ready, closed = self._ready, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._client, ready, closed), daemon=True, name="pagefleet-subscriber"
        )
        self._thread.start()
        deadline = time.monotonic() + 2 * self._settings.connect_timeout_s
        try:
            while not ready.wait(0.02):
                if self._failure is not None or time.monotonic() > deadline:
                    raise self._failure or RedisUnavailable(
                        f"Redis did not confirm a subscription within {self._settings.connect_timeout_s:g} s."
                    )
        except BaseException:
            # Also after Ctrl-C: the next call of open() starts another thread.
            self.stop()
            raise

    def stop(self) -> None:
        """End the thread soon. Returns at once."""
        self._closed.set()

    def close(self) -> None:
        """Return when the thread has ended: only then may the connections that it uses be closed."""
        self.stop()
        if self._ready.is_set():
            self._wake()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()
        if self._client is not None:
            _close_idle(self._client)

    def stop_with(self, owner: object) -> None:
        """Stop when ``owner`` is garbage collected: the caller dropped the client and all its streams."""
        weakref.finalize(owner, _stop_here, os.getpid(), self)

    def watch(self, job_id: str, deliver: Deliver) -> None:
        """Listen to a job's own channel. The first of several readers subscribes.

        After the server has confirmed it, the readers read the log: from then on they miss nothing. If the
        server is unavailable, this happens when it is back.
        """
        self.routes.add(job_id, deliver)
        self._watched.add(job_id, deliver)
        self._wake()

    def unwatch(self, job_id: str, deliver: Deliver) -> None:
        """Called in any thread: a finalizer closes a stream that its caller has dropped."""
        self.routes.remove(job_id, deliver)
        self._watched.remove(job_id, deliver)

    def report_soon(self) -> None:
        """The thread reports several times a second anyway."""

    def _wake(self) -> None:
        """End the thread's wait for a message."""
        with contextlib.suppress(RedisUnavailable), redis_errors(self._settings.url):
            self._client.publish(self._channel, "")

    def _run(self, client: Any, ready: threading.Event, closed: threading.Event) -> None:
        backoff = Backoff(RECONNECT_BASE_S, RECONNECT_CAP_S)
        while not closed.is_set():
            try:
                with redis_errors(self._settings.url):
                    self._listen(client, ready, closed)
            except Exception as error:
                if not isinstance(error, RedisUnavailable):
                    logger.exception(SUBSCRIBER_FAILED)
                self._failure = error
                if ready.is_set():
                    backoff.reset()
                ready.clear()
                closed.wait(backoff.next_s())
        _close_idle(client)

    def _listen(self, client: Any, ready: threading.Event, closed: threading.Event) -> None:
        with contextlib.closing(client.pubsub()) as pubsub:
            pubsub.subscribe(self._channel)
            watched: set[str] = set()
            beat_at = 0.0
            while not closed.is_set():
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + BEAT_EVERY_S
                    self._beat()
                self._report_abandoned()
                watched = self._subscribe(pubsub, watched)
                message = pubsub.get_message(timeout=_POLL_S)
                if message is None:
                    continue
                if message["type"] == "message":
                    self.routes.dispatch(message["data"])
                elif message["type"] == "subscribe" and message["channel"] == self._channel:
                    ready.set()
                    self.routes.resync()
                elif message["type"] == "subscribe":
                    self.routes.resync_job(keys.job_of_channel(message["channel"]))
            # The streams that were closed together with the client.
            self._report()

    def _subscribe(self, pubsub: Any, watched: set[str]) -> set[str]:
        """Subscribe to the channels that have readers now, and leave the others. Returns the jobs."""
        wanted = set(self._watched.job_ids())
        if wanted != watched:
            if wanted - watched:
                pubsub.subscribe(*map(keys.job_channel, wanted - watched))
            if watched - wanted:
                pubsub.unsubscribe(*map(keys.job_channel, watched - wanted))
        return wanted

    def _report_abandoned(self) -> None:
        if time.monotonic() >= self._report_at and not self._report():
            self._report_at = time.monotonic() + BEAT_EVERY_S


def _close_idle(client: Any) -> None:
    """Close the connections that no thread uses now. Another thread may be in :meth:`Subscriber._wake`, and
    redis-py fails with a TypeError if its connection is closed meanwhile."""
    client.connection_pool.disconnect(inuse_connections=False)


def _stop_here(pid: int, subscriber: Subscriber) -> None:
    """Not in a forked child: it does not have the thread, and a lock may be held there forever."""
    if os.getpid() == pid:
        subscriber.stop()
