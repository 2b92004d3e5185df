"""Backlog: take several messages at once while messages wait in the queues.

kombu takes one message per round trip, and stores it as unacknowledged in a second one. Written against kombu
5.7.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import redis

from pagefleet.api.contract import keys
from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.scripts import load_script
from pagefleet.workers.queue.unacked import UnackedMessages, put_back

logger = logging.getLogger(__name__)

_MAX_BATCH: Final = 64
_BACKLOG_S: Final = 0.005
"""If BRPOP is answered within this time, more messages probably wait."""

Room = Mapping[Lane, int]


class Backlog:
    """Takes messages after each BRPOP that was answered at once.

    Args:
        examine: validates a raw message of a queue; returns what Celery receives, or None.
        room: returns for each lane how many messages may be taken, the most urgent lane first.
        queues: the current queue of each lane. Queues of former versions have no backlog.
        lease_s: a worker that has not beaten for this long takes no messages.
        together: a context for the delivery of messages that were taken together.
    """

    def __init__(
        self,
        channel: Any,
        unacked: UnackedMessages,
        examine: Callable[[bytes, str], Any],
        room: Callable[[], Room],
        queues: Mapping[Lane, str],
        lease_s: float,
        together: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._channel = channel
        self._client = channel._create_client()
        self._deliver = channel.connection._deliver
        self._unacked = unacked
        self._examine = examine
        self._room = room
        self._queues = queues
        self._lease_ms = int(lease_s * 1000)
        self._together = together
        self._is_allowed = True

    def follow(self) -> None:
        """Read the backlog after each message that BRPOP returns."""
        read = self._channel.handlers["BRPOP"]

        def read_all(**options: Any) -> Any:
            sent_at = self._channel._brpop_sent_at
            result = read(**options)
            if time.monotonic() - sent_at < _BACKLOG_S and self._is_allowed:
                self.take()
            return result

        self._channel.handlers["BRPOP"] = read_all

    def take(self) -> int:
        """Take and deliver messages of one queue. Return how many were taken."""
        queue, raw_messages = self._pop()
        if not raw_messages:
            return 0
        examined = [self._examine(raw, queue) for raw in raw_messages]
        messages = [message for message in examined if message is not None]
        if queue not in self._channel.connection._callbacks:
            # The consumer was cancelled: the messages return to the front of their queue.
            for message in reversed(messages):
                put_back(self._channel, message)
            return len(raw_messages)
        received = [self._channel.Message(each, self._channel) for each in messages]
        with self._unacked.stored_together(received), self._together():
            for message in messages:
                self._deliver_valid(message, queue)
        return len(raw_messages)

    def _deliver_valid(self, message: Any, queue: str) -> None:
        try:
            self._deliver(message, queue)
        except (ValueError, RecursionError) as error:
            # The gate would report the message as broken.
            raise RuntimeError("Celery failed on a message that passed the gate") from error

    def _pop(self) -> tuple[str, Sequence[bytes]]:
        limits = {
            self._channel._q_for_pri(self._queues[lane], step): min(count, _MAX_BATCH)
            for lane, count in self._room().items()
            for step in self._channel.priority_steps
            if self._queues[lane] in self._channel.active_queues
        }
        if not any(limits.values()):
            return "", ()
        script = load_script("pop")
        call = (1 + len(limits), keys.WORKERS, *limits, self._lease_ms, *limits.values())
        try:
            try:
                reply = self._client.evalsha(script.sha, *call)
            except redis.exceptions.NoScriptError:
                reply = self._client.eval(script.source, *call)
        except redis.exceptions.NoPermissionError:
            # A Redis user from before this version; ops/redis/users.acl has the new line.
            logger.warning("the Redis user may not run RPOP, so messages are taken one by one")
            self._is_allowed = False
            return "", ()
        if not reply:
            return "", ()
        name, *raw_messages = reply
        return name.decode().rsplit(self._channel.sep, 1)[0], raw_messages
