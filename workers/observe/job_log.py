"""Log lines about jobs. They contain ids, tenants and attempts, but never a prompt or an answer."""

from __future__ import annotations

import logging
from typing import Any

from pagefleet.api.contract.keys import Lane
from pagefleet.api.protocol.job_record import JobRecord
from pagefleet.workers.job.active_job import ActiveJob
from pagefleet.workers.job.job_times import JobTimes

logger = logging.getLogger("pagefleet.jobs")


def job_fields(job: ActiveJob) -> dict[str, Any]:
    """Return the ``extra=`` fields of a log call about an attempt."""
    return {"job": job.job_id, "tenant": job.tenant, "attempt": job.times.attempt}


def log_end(record: JobRecord, lane: Lane, job: ActiveJob | None) -> None:
    """Log the end of a job, at level info. Each job has exactly one such line."""
    fields = end_fields(record, lane, job)
    if logger.isEnabledFor(logging.INFO):
        text = " ".join(f"{name}={value}" for name, value in fields.items() if value is not None)
        logger.info("job ended: %s", text, extra=fields)


def end_fields(record: JobRecord, lane: Lane, job: ActiveJob | None) -> dict[str, Any]:
    """Return the fields of the line. Seconds are rounded to 0.1 ms; unknown values are None."""
    times = JobTimes() if job is None else job.times
    return {
        "job": record.job_id,
        "tenant": record.tenant,
        "attempt": record.attempts,
        "lane": lane,
        "state": record.state.name.lower(),
        "finish_reason": record.ended_by,
        "error": None if record.error is None else record.error.code,
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_tokens": sum(record.num_tokens),
        "queue_s": _rounded(times.queue_s),
        "prefill_s": _rounded(times.prefill_s),
        "decode_s": _rounded(times.decode_s),
        "total_s": _rounded(record.seconds_open),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
