"""Errors that name their job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pagefleet.api.contract.errors import FleetError, JobNotFound


@contextlib.contextmanager
def about(job_id: str) -> Iterator[None]:
    """Every error in it names the job."""
    try:
        yield
    except FleetError as error:
        error.job_id = error.job_id or job_id
        raise


def job_not_found(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no job {job_id!r}: the id is wrong, or its result has expired.", job_id=job_id
    )
