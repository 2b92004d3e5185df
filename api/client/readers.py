"""Readers: which jobs this process reads, and which of them nobody reads any more.

A job that is not detached ends with its last reader (protocol lines 15 and 16). A reader may leave in a
finalizer, which can run anywhere, in any thread, at any line: it only writes down that it has left. The
subscriber tells the server.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

_ORPHAN_FOR_S: Final = 10.0
"""A SUBMIT that was broken off may still reach the server: for so long its job is asked for."""


class Departure(NamedTuple):
    """A job without a reader in this process.

    ``is_orphan``: its submit was broken off and nobody knows its id, so that it ends in any case; ``until``
    then it is looked for where the server does not know it.
    """

    job_id: str
    is_orphan: bool = False
    until: float = 0.0


class Reader:
    """One stream's place among the readers of its job."""

    __slots__ = ("_readers", "job_id", "stays")

    def __init__(self, readers: Readers, job_id: str) -> None:
        self._readers = readers
        self.job_id = job_id
        self.stays = False
        """The job goes on although this reader leaves."""

    def leave(self) -> None:
        """Once; later calls do nothing."""
        self._readers.remove(self)


class Readers:
    """All of one client's. Without locks: a fork could leave one held in the child. There nobody reads, and
    nobody leaves: what the child inherited is its parent's.

    Args:
        wake: called after a departure, from whatever thread; it must not block.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._pid = os.getpid()
        self._wake = wake
        self._job_of: dict[Reader, str] = {}
        self._departures: deque[Departure] = deque()

    def add(self, job_id: str) -> Reader:
        reader = Reader(self, job_id)
        self._job_of[reader] = job_id
        return reader

    def remove(self, reader: Reader) -> None:
        was_there = self._job_of.pop(reader, None) is not None
        if was_there and not reader.stays:
            self._put(Departure(reader.job_id))

    def _put(self, departure: Departure) -> None:
        if os.getpid() == self._pid:
            self._departures.append(departure)
            self._wake()

    def put_back(self, departure: Departure) -> None:
        """One of :meth:`departures` that the server could not be told yet: with the next turn."""
        self._departures.append(departure)

    def orphan(self, job_id: str) -> None:
        """A job that must not be: its submit was broken off, and its id is known to nobody."""
        self._put(Departure(job_id, True, time.monotonic() + _ORPHAN_FOR_S))

    def reads(self, job_id: str) -> bool:
        return job_id in list(self._job_of.values())

    @property
    def num_departures(self) -> int:
        return len(self._departures)

    def departures(self) -> Iterator[Departure]:
        """Those of now, each once, without those whose job has a reader here."""
        for _ in range(len(self._departures)):
            departure = self._departures.popleft()
            if departure.is_orphan or not self.reads(departure.job_id):
                yield departure
