"""Split the unsent tokens of many jobs into STEP calls of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pagefleet.api.protocol.operation_types import StepBatch
from pagefleet.workers.job.active_choice import ActiveChoice
from pagefleet.workers.job.active_job import ActiveJob

_MAX_ITEMS: Final = 256
_MAX_CHARS: Final = 2**17


class UnsentBatch(NamedTuple):
    """A call, and the choices of its items."""

    batch: StepBatch
    choices: list[tuple[ActiveJob, ActiveChoice]]


def step_batches(jobs: Iterable[ActiveJob]) -> Iterator[UnsentBatch]:
    """Yield the jobs' unsent tokens in batches, each for one call.

    The size is bounded because a script blocks the server while it runs.
    """
    batch, choices, num_chars = StepBatch(), [], 0
    for job in jobs:
        is_accepted = job.accepted_sent
        for choice in job.choices_to_send():
            entry, base = choice.next_entry(), choice.num_sent
            choices.append((job, choice))
            batch.keys += job.keys
            batch.epochs.append(job.epoch)
            batch.choices.append(choice.index)
            batch.bases.append(base)
            batch.counts.append(len(choice.token_ids) - base)
            batch.entries.append(entry)
            if choice.finish_reason is not None:
                batch.reasons.append((len(choices), choice.finish_reason))
            if not is_accepted:
                batch.accepted.append((len(choices), job.num_prompt_tokens, job.num_cached_tokens))
                is_accepted = True
            num_chars += len(entry)
            if len(choices) >= _MAX_ITEMS or num_chars >= _MAX_CHARS:
                yield UnsentBatch(batch, choices)
                batch, choices, num_chars = StepBatch(), [], 0
    if choices:
        yield UnsentBatch(batch, choices)
