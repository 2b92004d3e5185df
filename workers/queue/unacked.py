"""A worker's unacknowledged messages: in a ledger of its own, and put back to the front of their queues."""

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
    """Makes a broken connection to the broker an interruption instead of the worker's end.

    kombu would restore this channel's messages by itself when its connection breaks, although their jobs go
    on here; and it fails with an ``AttributeError`` where it restores or acknowledges over a channel that is
    closed, which ends Celery's consumer. What could not be acknowledged is put back by
    :func:`restore_unacked` once there is a new channel; the job has ended by then, and is closed once more.
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
            logger.info("message %s could not be acknowledged now: %s", delivery_tag, reason_of(error))

    qos.ack = MethodType(ack, qos)
    write_down = qos.append

    def append(_qos: Any, message: Any, delivery_tag: str) -> None:
        try:
            write_down(message, delivery_tag)
        except redis.OutOfMemoryError:
            # Popped in the moment before the worker knew that the server is full. It is held in memory only,
            # and its claim waits for room; if the worker dies meanwhile, the sweeper sends its job again.
            logger.warning("message %s could not be written down: Redis is at its memory limit", delivery_tag)
            VirtualQoS.append(qos, message, delivery_tag)

    qos.append = MethodType(append, qos)


def put_back(channel: Any, raw_message: Any) -> None:
    """Return a message that was just taken to the front of its queue."""
    message = channel.Message(raw_message, channel=channel)
    channel.qos.append(message, message.delivery_tag)
    channel.qos.restore_by_tag(message.delivery_tag)
    VirtualQoS.ack(channel.qos, message.delivery_tag)


def restore_unacked(
    channel: Any,
    worker_id: str,
    held: Collection[str] = (),
    still_wanted: Callable[[], bool] = lambda: True,
) -> int:
    """Puts a worker's unacknowledged messages back to the front of their queues, the oldest first in line.

    Args:
        channel: a channel whose transport options name that worker's keys.
        held: delivery tags that stay where they are.
        still_wanted: asked before each message; False ends the restoring.

    Returns:
        How many messages were put back.
    """
    index = keys.unacked(worker_id)["unacked_index_key"]
    with channel.conn_or_acquire() as client:
        tags = [tag.decode() if isinstance(tag, bytes) else tag for tag in client.zrevrange(index, 0, -1)]
    num_restored = 0
    for tag in tags:
        if tag in held:
            continue
        if not still_wanted():
            break
        try:
            channel.qos.restore_by_tag(tag)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # No message of ours, and nothing else to be done with it.
            logger.error("an unacknowledged entry is dropped: it cannot be read (%s)", type(error).__name__)
            channel.qos._remove_from_indices(tag).execute()
            continue
        num_restored += 1
    return num_restored
