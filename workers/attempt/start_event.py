"""The fields of Celery's ``task-started`` event, which ``api/operate/flower/job_task.py`` reads."""

from __future__ import annotations

import time
from typing import Any

from pagefleet.api.broker.arguments import request_repr
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.workers.job.active_job import ActiveJob


def start_fields(job: ActiveJob, request: GenerateRequest, prompt_chars: int) -> dict[str, Any]:
    """Return the attempt's number, the shortened request, and the time in the queue.

    The time is left out if an earlier attempt has already produced tokens.
    """
    fields: dict[str, Any] = {
        "attempts": job.times.attempt,
        "retries": job.times.attempt - 1,
        "kwargs": request_repr(request, prompt_chars),
    }
    if not job.has_tokens:
        fields["queue_s"] = job.times.waited_s + time.monotonic() - job.times.claimed_at
    return fields
