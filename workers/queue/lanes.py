"""Lanes: in which order a worker takes messages, and when it gives work back for more urgent work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, Final

from pagefleet.api.contract.keys import Lane

_SHORT_BRPOP_S: Final = 0.1
"""While only one lane is asked for: room for the other may come at any moment."""


def take_lanes_in_order(
    channel: Any, lanes_with_room: Callable[[], Sequence[Lane]], queues: Mapping[Lane, Sequence[str]]
) -> None:
    """Makes a kombu channel ask for whole lanes one after the other, and only for those with room.

    kombu asks for the first priority of every queue, then for the second: a batch job of priority 9 would
    come before an interactive one of priority 5. Written against kombu 5.7 (``Channel._brpop_start``).

    Args:
        lanes_with_room: the lanes that there is room for now, the most urgent first.
        queues: every lane's queues. Those of one lane are one queue: a priority is asked for in all of them.
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


class Yielder:
    """Gives batch work back to its queue where interactive work waits and finds no room.

    The same path as leaving: the log is flushed, the job is released, its message goes to the front.

    Args:
        is_full: whether there is no room for one more interactive job.
        num_waiting: interactive messages in the queue.
        give_back: releases at most so many batch jobs, the ones that came last.
    """

    def __init__(
        self, is_full: Callable[[], bool], num_waiting: Callable[[], int], give_back: Callable[[int], int]
    ) -> None:
        self._is_full = is_full
        self._num_waiting = num_waiting
        self._give_back = give_back

    def give_way(self) -> int:
        """Returns how many batch jobs were released."""
        if not self._is_full():
            return 0
        num_waiting = self._num_waiting()
        return self._give_back(num_waiting) if num_waiting else 0
