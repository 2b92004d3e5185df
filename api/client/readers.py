"""Readers: which jobs this client reads, and which of them have lost their last reader.

A job that is not detached ends with its last reader (protocol lines 15 and 16). A stream may be closed by a
finalizer, which can run in any thread at any line. So closing only makes a note here, and the subscriber
reports it to the server.
"""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

_DISCARD_FOR_S: Final = 10.0
"""An interrupted SUBMIT may still reach the server. For this long its job is looked for."""


class AbandonedJob(NamedTuple):
    """A job without a reader in this client.

    Attributes:
        must_end: its submit was interrupted and its id is unknown, so it is cancelled even if it is detached.
        retry_until: until then, a job that must end and does not exist yet is looked for again.
    """

    job_id: str
    must_end: bool = False
    retry_until: float = 0.0


class Reader:
    """One stream among the readers of its job."""

    __slots__ = ("_readers", "job_id", "keeps_running")

    def __init__(self, readers: Readers, job_id: str) -> None:
        self._readers = readers
        self.job_id = job_id
        self.keeps_running = False
        """Whether the job continues after this reader has left."""

    def leave(self) -> None:
        """Later calls do nothing."""
        self._readers.remove(self)


class Readers:
    """The readers of one client. There are no locks, since a fork could leave one held in the child. In a
    child all of them do nothing: the streams that it inherited belong to its parent.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._on_abandoned: Callable[[], None] | None = None
        self._job_of: dict[Reader, str] = {}
        self._abandoned: deque[AbandonedJob] = deque()

    def call_on_abandoned(self, call: Callable[[], None]) -> None:
        """Call this after each abandoned job, in any thread. It must not block."""
        self._on_abandoned = call

    def add(self, job_id: str) -> Reader:
        reader = Reader(self, job_id)
        self._job_of[reader] = job_id
        return reader

    def remove(self, reader: Reader) -> None:
        was_there = self._job_of.pop(reader, None) is not None
        if was_there and not reader.keeps_running:
            self._put(AbandonedJob(reader.job_id))

    def discard_job(self, job_id: str) -> None:
        """Cancel a job whose submit was interrupted, if it exists or comes into being soon."""
        self._put(AbandonedJob(job_id, True, time.monotonic() + _DISCARD_FOR_S))

    def put_back(self, job: AbandonedJob) -> None:
        """Return a job of :meth:`abandoned` that could not be reported yet."""
        self._abandoned.append(job)

    def is_read(self, job_id: str) -> bool:
        return job_id in list(self._job_of.values())

    def abandoned(self) -> Iterator[AbandonedJob]:
        """Take out the jobs that are abandoned now, without those that have a reader again."""
        for _ in range(len(self._abandoned)):
            job = self._abandoned.popleft()
            if job.must_end or not self.is_read(job.job_id):
                yield job

    def _put(self, job: AbandonedJob) -> None:
        if os.getpid() == self._pid:
            self._abandoned.append(job)
            if self._on_abandoned is not None:
                self._on_abandoned()


def leave_when_dropped(source: object, reader: Reader) -> weakref.finalize[..., Any]:
    """Let the reader leave when ``source`` is garbage collected: the caller dropped an unfinished stream."""
    finalizer = weakref.finalize(source, reader.leave)
    finalizer.atexit = False
    return finalizer
