"""Adds the job's id to errors, and makes the error of an unknown job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pagefleet.api.contract.errors import FleetError, JobNotFound


@contextlib.contextmanager
def naming_job(job_id: str) -> Iterator[None]:
    """Set ``job_id`` of every FleetError that is raised in this context and does not name a job yet."""
    try:
        yield
    except FleetError as error:
        error.job_id = error.job_id or job_id
        raise


def job_not_found(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no job {job_id!r}: check the id; results expire after some time.", job_id=job_id
    )
