"""A worker's unacknowledged messages: acknowledge them, or restore them to the front of their queues.

Each worker has its own ``unacked`` keys in Redis.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from types import MethodType
from typing import Any

import redis
from kombu.transport.virtual.base import QoS as VirtualQoS
from kombu.utils.json import dumps
from pydantic_core import PydanticSerializationError, to_json

from pagefleet.api.contract import keys
from pagefleet.api.protocol.connection import reason_of

logger = logging.getLogger(__name__)


def reuse_client(channel: Any) -> None:
    """Let a channel use one Redis client. kombu makes a new one for each call, which takes 40 us."""
    own = channel._create_client()

    def conn_or_acquire(_channel: Any, client: Any = None) -> Any:
        return contextlib.nullcontext(client or own)

    channel.conn_or_acquire = MethodType(conn_or_acquire, channel)


class UnackedMessages:
    """A channel's bookkeeping of unacknowledged messages, which survives a broken connection to the broker.

    When its connection breaks, kombu would restore this channel's messages although their jobs still run
    here. It also raises ``AttributeError`` if it restores or acknowledges over a closed channel, which ends
    Celery's consumer. A message that could not be acknowledged is restored by :func:`restore_unacked` once
    there is a new channel. Its job has ended by then and is closed a second time, which changes nothing.

    Acknowledgements are collected until :meth:`flush`, which sends all of them in one call.

    Args:
        flush_soon: makes the event loop call :meth:`flush`.
    """

    def __init__(self, channel: Any, flush_soon: Callable[[], None]) -> None:
        self._flush_soon = flush_soon
        self._channel = channel
        self._qos = channel.qos
        self._client = channel._create_client()
        self._acknowledged: list[str] = []
        self._stored: frozenset[str] = frozenset()
        self._store = channel.qos.append

    def guard(self) -> None:
        """Replace how the channel stores and acknowledges messages."""
        qos = self._qos
        qos.restore_at_shutdown = False
        qos.append = MethodType(lambda _qos, message, tag: self._append(message, tag), qos)
        qos.ack = MethodType(lambda _qos, tag: self._ack(tag), qos)

    def flush(self) -> None:
        """Acknowledge the messages that were settled since the last call."""
        tags, self._acknowledged = self._acknowledged, []
        if not tags:
            return
        qos = self._qos
        try:
            pipeline = self._client.pipeline()
            pipeline.zrem(qos.unacked_index_key, *tags).hdel(qos.unacked_key, *tags).execute()
        except Exception as error:
            if not self._channel.closed and not isinstance(error, self._channel.connection_errors):
                raise
            logger.info("%d messages could not be acknowledged yet: %s", len(tags), reason_of(error))

    @contextlib.contextmanager
    def stored_together(self, messages: Sequence[Any]) -> Iterator[None]:
        """Store messages in one call. While the context is open, their delivery does not store them again."""
        qos, now = self._qos, time.time()
        if messages:
            pipeline = self._client.pipeline()
            # The scores differ, because restore_unacked keeps the order of the messages by them.
            scores = {each.delivery_tag: now + index * 1e-6 for index, each in enumerate(messages)}
            pipeline.zadd(qos.unacked_index_key, scores)
            pipeline.hset(qos.unacked_key, mapping={each.delivery_tag: _entry(each) for each in messages})
            try:
                pipeline.execute()
            except redis.OutOfMemoryError:
                self._warn_of_full_server(len(messages))
        self._stored = frozenset(message.delivery_tag for message in messages)
        try:
            yield
        finally:
            self._stored = frozenset()

    def _append(self, message: Any, delivery_tag: str) -> None:
        if delivery_tag in self._stored:
            VirtualQoS.append(self._qos, message, delivery_tag)
            return
        try:
            self._store(message, delivery_tag)
        except redis.OutOfMemoryError:
            self._warn_of_full_server(1)
            VirtualQoS.append(self._qos, message, delivery_tag)

    def _ack(self, delivery_tag: str) -> None:
        if not self._acknowledged:
            self._flush_soon()
        self._acknowledged.append(delivery_tag)
        VirtualQoS.ack(self._qos, delivery_tag)

    def _warn_of_full_server(self, num_messages: int) -> None:
        # The messages were popped just before the worker learned that Redis is full. They are held only in
        # memory, and their claims are retried. If the worker dies before that, the sweeper sends them again.
        logger.warning(
            "%d messages are not stored as unacknowledged: Redis is at its memory limit", num_messages
        )


def _entry(message: Any) -> bytes | str:
    """Return what kombu's ``QoS.append`` stores."""
    delivery = message.delivery_info
    entry = [message._raw, delivery["exchange"], delivery["routing_key"]]
    try:
        return to_json(entry)
    except PydanticSerializationError:
        # A text with half of a surrogate pair.
        text: str = dumps(entry)
        return text


def put_back(channel: Any, raw_message: Any) -> None:
    """Put a message that was just popped back at the front of its queue."""
    message = channel.Message(raw_message, channel=channel)
    channel.qos.append(message, message.delivery_tag)
    channel.qos.restore_by_tag(message.delivery_tag)
    VirtualQoS.ack(channel.qos, message.delivery_tag)


def restore_unacked(
    channel: Any,
    worker_id: str,
    held: Collection[str] = (),
    may_continue: Callable[[], bool] = lambda: True,
) -> int:
    """Restore a worker's unacknowledged messages to the front of their queues, the oldest at the very front.

    Args:
        channel: a channel whose transport options name that worker's keys.
        held: delivery tags to leave unacknowledged.
        may_continue: called before each message; stop restoring if it returns False.

    Returns:
        How many messages were restored.
    """
    index = keys.unacked(worker_id)["unacked_index_key"]
    with channel.conn_or_acquire() as client:
        tags = [tag.decode() if isinstance(tag, bytes) else tag for tag in client.zrevrange(index, 0, -1)]
    num_restored = 0
    for tag in tags:
        if tag in held:
            continue
        if not may_continue():
            break
        try:
            channel.qos.restore_by_tag(tag)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # The entry is not a message, so it cannot be restored anywhere.
            logger.error("an unacknowledged entry is dropped: it is not a message (%s)", type(error).__name__)
            channel.qos._remove_from_indices(tag).execute()
            continue
        num_restored += 1
    return num_restored
