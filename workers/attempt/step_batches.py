"""Split the unsent tokens of many jobs into STEP calls of a bounded size."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Final

from pagefleet.api.protocol.operation_types import StepItem
from pagefleet.workers.job.active_job import ActiveJob

_MAX_ITEMS: Final = 128
_MAX_TOKENS: Final = 8192
_CHARS_PER_TOKEN: Final = 16


def step_batches(jobs: Iterable[ActiveJob]) -> Iterator[list[tuple[ActiveJob, StepItem]]]:
    """Yield the jobs' unsent items in batches, each for one call.

    The size is bounded because a script blocks the server while it runs.
    """
    batch: list[tuple[ActiveJob, StepItem]] = []
    num_tokens = 0
    for job in jobs:
        job.last_sent_at = time.monotonic()
        for item in job.next_items():
            batch.append((job, item))
            num_tokens += _size(item)
            if len(batch) >= _MAX_ITEMS or num_tokens >= _MAX_TOKENS:
                yield batch
                batch, num_tokens = [], 0
    if batch:
        yield batch


def _size(item: StepItem) -> int:
    """Return the size in tokens. A logprob counts as one token, text by its length."""
    entry = item.entry
    if entry is None:
        return 0
    logprobs = [*(entry.logprobs or ()), *(entry.prompt_logprobs or ())]
    num_chars = sum(map(len, entry.texts))
    num_ids = len(entry.token_ids) + len(entry.prompt_token_ids or ())
    return num_ids + sum(1 + len(each.top) for each in logprobs) + num_chars // _CHARS_PER_TOKEN
