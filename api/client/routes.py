"""Routes: which streams of a client receive the events of which job."""

from __future__ import annotations

from typing import Final

from pagefleet.api.client.events import Deliver, LiveEvent, Resync
from pagefleet.api.contract.messages import split_events

BEAT_EVERY_S: Final = 2.5
"""A quarter of a client's lease."""
RECONNECT_BASE_S: Final = 0.05
RECONNECT_CAP_S: Final = 2.0
SUBSCRIBER_FAILED: Final = "the subscriber failed; until it listens again, streams read their jobs' logs"


class Routes:
    """Delivers events by job id. The subscriber dispatches while other threads add and remove.

    There is no lock, since a fork could leave it held in the child. If two threads add a route for the same
    job at the same moment, one of them may be lost. Its stream then reads the log.
    """

    def __init__(self) -> None:
        # The tuples are replaced and never changed, because the subscriber may be iterating over one.
        self._deliver: dict[str, tuple[Deliver, ...]] = {}

    def add(self, job_id: str, deliver: Deliver) -> None:
        """Several streams of a client may read the same job. Each receives its events."""
        present = self._deliver.get(job_id, ())
        if deliver not in present:
            self._deliver[job_id] = (*present, deliver)

    def remove(self, job_id: str, deliver: Deliver) -> None:
        left = tuple(each for each in self._deliver.get(job_id, ()) if each != deliver)
        if left:
            self._deliver[job_id] = left
        else:
            self._deliver.pop(job_id, None)

    def dispatch(self, payload: str) -> None:
        """Deliver the events of one message of a channel."""
        for job_id, kind, body in split_events(payload):
            for deliver in self._deliver.get(job_id, ()):
                deliver(LiveEvent(kind, body))

    def resync(self) -> None:
        """Let every stream read its job's log: events may have been missed."""
        for job_id in self.job_ids():
            self.resync_job(job_id)

    def resync_job(self, job_id: str) -> None:
        for deliver in self._deliver.get(job_id, ()):
            deliver(Resync())

    def job_ids(self) -> list[str]:
        return list(self._deliver)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._deliver

    def __len__(self) -> int:
        return len(self._deliver)
