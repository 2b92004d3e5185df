"""What Celery's ``task-started`` says of an attempt; ``api/operate/flower/job_task.py`` reads it."""

from __future__ import annotations

import time
from typing import Any

from pagefleet.api.broker.arguments import request_repr
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.workers.job.active_job import ActiveJob


def start_fields(job: ActiveJob, request: GenerateRequest, prompt_chars: int) -> dict[str, Any]:
    """Its number, its arguments shortened, and how long the job waited; not of one that began elsewhere."""
    fields: dict[str, Any] = {
        "attempts": job.times.attempt,
        "retries": job.times.attempt - 1,
        "kwargs": request_repr(request, prompt_chars),
    }
    if not job.has_tokens:
        fields["queue_s"] = job.times.waited_s + time.monotonic() - job.times.claimed_at
    return fields
