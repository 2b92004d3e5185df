"""Lanes: take interactive messages before batch messages, and preempt batch jobs for interactive ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, Final

from pagefleet.api.contract.keys import Lane

_SHORT_BRPOP_S: Final = 0.1
"""Used while only one lane has room: the other may have room again at any moment."""


def take_lanes_in_order(
    channel: Any, lanes_with_room: Callable[[], Sequence[Lane]], queues: Mapping[Lane, Sequence[str]]
) -> None:
    """Make a kombu channel poll one lane after the other, and only lanes with room.

    kombu polls the first priority of every queue, then the second: a batch job of priority 9 would come
    before an interactive one of priority 5. Written against kombu 5.7 (``Channel._brpop_start``).

    Args:
        lanes_with_room: returns the lanes that have room now, interactive first.
        queues: the queues of each lane. Each priority is polled in all queues of a lane before the next.
    """

    def brpop_start(self: Any, timeout: float | None = None) -> None:
        lanes = lanes_with_room()
        names = [
            self._q_for_pri(queue, step)
            for lane in lanes
            for step in self.priority_steps
            for queue in queues[lane]
            if queue in self.active_queues
        ]
        if not names:
            return
        if timeout is None:
            timeout = self.brpop_timeout if len(lanes) == len(queues) else _SHORT_BRPOP_S
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command("BRPOP", *names, timeout)

    channel._brpop_start = MethodType(brpop_start, channel)


class BatchPreemption:
    """Returns batch jobs to their queue while interactive messages wait for room.

    A preempted job is released like during a drain: its log is flushed, and its message goes to the front of
    its queue.

    Args:
        is_needed: whether batch jobs are held and one more interactive job has no room.
        num_waiting: counts the interactive messages in the queue.
        release: releases up to this many batch jobs, the latest first, and returns how many.
    """

    def __init__(
        self, is_needed: Callable[[], bool], num_waiting: Callable[[], int], release: Callable[[int], int]
    ) -> None:
        self._is_needed = is_needed
        self._num_waiting = num_waiting
        self._release = release

    def preempt(self) -> int:
        """Return how many batch jobs were released."""
        if not self._is_needed():
            return 0
        num_waiting = self._num_waiting()
        return self._release(num_waiting) if num_waiting else 0
