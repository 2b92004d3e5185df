"""Routes: which streams of a client receive the events of which job."""

from __future__ import annotations

from typing import Final

from pagefleet.api.client.events import Deliver, LiveEvent, Resync

BEAT_EVERY_S: Final = 2.5
"""A quarter of a client's lease."""
RECONNECT_BASE_S: Final = 0.05
RECONNECT_CAP_S: Final = 2.0
SUBSCRIBER_FAILED: Final = "the subscriber failed; until it listens again, streams read their jobs' logs"


class Routes:
    """Delivers events by job id. The subscriber dispatches while other threads add and remove.

    There is no lock, since a fork could leave it held in the child, and a finalizer may call :meth:`remove`
    at any line. Each step on a dictionary is atomic. What another thread does between two steps is found
    afterwards and repaired.
    """

    def __init__(self) -> None:
        # Sets with an order: the values are not used.
        self._deliver: dict[str, dict[Deliver, None]] = {}

    def add(self, job_id: str, deliver: Deliver) -> None:
        """Several streams of a client may read the same job. Each receives its events."""
        while True:
            present = self._deliver.setdefault(job_id, {})
            present[deliver] = None
            # Another thread may have removed the dictionary because it was empty.
            if self._deliver.get(job_id) is present:
                return

    def remove(self, job_id: str, deliver: Deliver) -> None:
        left = self._deliver.get(job_id)
        if left is None:
            return
        left.pop(deliver, None)
        if not left:
            removed = self._deliver.pop(job_id, None) or {}
            # Another thread may have added a route meanwhile.
            for added in [*left, *removed]:
                self.add(job_id, added)

    def dispatch(self, payload: str) -> None:
        """Deliver the events of one message of a channel."""
        for line in payload.split("\n"):
            job_id, _, rest = line.partition(" ")
            readers = self._deliver.get(job_id)
            if readers:
                kind, _, body = rest.partition(" ")
                event = LiveEvent(kind, body)
                for deliver in list(readers):
                    deliver(event)

    def resync(self) -> None:
        """Let every stream read its job's log: events may have been missed."""
        for job_id in self.job_ids():
            self.resync_job(job_id)

    def resync_job(self, job_id: str) -> None:
        for deliver in list(self._deliver.get(job_id, ())):
            deliver(Resync())

    def job_ids(self) -> list[str]:
        return list(self._deliver)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._deliver

    def __len__(self) -> int:
        return len(self._deliver)
