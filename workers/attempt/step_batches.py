"""Split the unsent tokens of many jobs into STEP calls of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pagefleet.api.protocol.operation_types import StepItem
from pagefleet.workers.job.active_job import ActiveJob

_MAX_ITEMS: Final = 128
_MAX_CHARS: Final = 2**17


def step_batches(jobs: Iterable[ActiveJob]) -> Iterator[list[tuple[ActiveJob, StepItem]]]:
    """Yield the jobs' unsent items in batches, each for one call.

    The size is bounded because a script blocks the server while it runs.
    """
    batch: list[tuple[ActiveJob, StepItem]] = []
    num_chars = 0
    for job in jobs:
        for item in job.next_items():
            batch.append((job, item))
            num_chars += len(item.entry)
            if len(batch) >= _MAX_ITEMS or num_chars >= _MAX_CHARS:
                yield batch
                batch, num_chars = [], 0
    if batch:
        yield batch
