"""A worker's unacknowledged messages: acknowledge them, or restore them to the front of their queues.

Each worker has its own ``unacked`` keys in Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from types import MethodType
from typing import Any

import redis
from kombu.transport.virtual.base import QoS as VirtualQoS

from pagefleet.api.contract import keys
from pagefleet.api.protocol.connection import reason_of

logger = logging.getLogger(__name__)


def guard_channel(channel: Any) -> None:
    """Let the worker survive a broken connection to the broker.

    When its connection breaks, kombu would restore this channel's messages although their jobs still run
    here. It also raises ``AttributeError`` if it restores or acknowledges over a closed channel, which ends
    Celery's consumer. A message that could not be acknowledged is restored by :func:`restore_unacked` once
    there is a new channel. Its job has ended by then and is closed a second time, which changes nothing.
    """
    qos = channel.qos
    qos.restore_at_shutdown = False
    acknowledge = qos.ack

    def ack(_qos: Any, delivery_tag: str) -> None:
        try:
            acknowledge(delivery_tag)
        except Exception as error:
            if not channel.closed and not isinstance(error, channel.connection_errors):
                raise
            logger.info("message %s could not be acknowledged yet: %s", delivery_tag, reason_of(error))

    qos.ack = MethodType(ack, qos)
    store = qos.append

    def append(_qos: Any, message: Any, delivery_tag: str) -> None:
        try:
            store(message, delivery_tag)
        except redis.OutOfMemoryError:
            # The message was popped just before the worker learned that Redis is full. It is held in memory
            # only, and its claim is retried. If the worker dies before that, the sweeper sends the job again.
            logger.warning(
                "message %s is not stored as unacknowledged: Redis is at its memory limit", delivery_tag
            )
            VirtualQoS.append(qos, message, delivery_tag)

    qos.append = MethodType(append, qos)


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
