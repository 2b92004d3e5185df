"""HeldJobs: the jobs that this worker has claimed and not given up yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pagefleet.workers.job.active_job import ActiveJob, JobMessage


class NumHeld(NamedTuple):
    """All sequences, and those of batch jobs."""

    total: int
    batch: int


class HeldJobs:
    """By job id. Used by several threads; each operation is atomic."""

    def __init__(self) -> None:
        self._jobs: dict[str, ActiveJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[ActiveJob]:
        return iter(list(self._jobs.values()))

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def get(self, job_id: str) -> ActiveJob | None:
        return self._jobs.get(job_id)

    def ids(self) -> list[str]:
        return list(self._jobs)

    def add(self, job: ActiveJob) -> None:
        self._jobs[job.job_id] = job

    def remove(self, job: ActiveJob) -> None:
        """Remove this attempt. A later attempt at the same job, by this worker, stays."""
        if self._jobs.get(job.job_id) is job:
            del self._jobs[job.job_id]

    def of_message(self, message: JobMessage) -> ActiveJob | None:
        """Return the attempt that this message brought."""
        job = self._jobs.get(message.job_id)
        return job if job is not None and job.message is message else None

    def num_extra_sequences(self) -> NumHeld:
        """Count the sequences beyond one per job: a job with several choices needs one for each of them."""
        extra = [(job.message.lane, max(0, job.num_unfinished_choices - 1)) for job in self]
        return NumHeld(sum(num for _, num in extra), sum(num for lane, num in extra if lane == "batch"))
