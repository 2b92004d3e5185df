"""A worker's unacknowledged messages: in a ledger of its own, and put back to the front of their queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagefleet.api import keys


def keep_unacked(channel: Any) -> None:
    """Keeps kombu from restoring this channel's messages by itself when its connection breaks.

    The jobs go on here meanwhile, and restoring over a connection that is gone ends Celery's consumer.
    """
    channel.qos.restore_at_shutdown = False


def restore_unacked(channel: Any, worker_id: str, still_wanted: Callable[[], bool] = lambda: True) -> int:
    """Puts every unacknowledged message of a worker back to the front of its queue, the oldest first in line.

    Args:
        channel: a channel whose transport options name that worker's keys.
        still_wanted: asked before each message; False ends the restoring.

    Returns:
        How many messages were put back.
    """
    index = keys.unacked(worker_id)["unacked_index_key"]
    with channel.conn_or_acquire() as client:
        tags = client.zrevrange(index, 0, -1)
    num_restored = 0
    for tag in tags:
        if not still_wanted():
            break
        channel.qos.restore_by_tag(tag.decode() if isinstance(tag, bytes) else tag)
        num_restored += 1
    return num_restored
