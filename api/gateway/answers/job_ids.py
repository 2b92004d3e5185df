"""Ids of answers. An id contains the number of its jobs and its time, so that these need not be stored.

``chatcmpl-<8 hex: seconds since the epoch><24 hex: random>``, and ``cmpl-...``; an answer to
several prompts is ``cmpl-....<count>``, and its jobs are ``cmpl-....<count>.<index>``.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

_OURS: Final = re.compile(
    r"(?:chatcmpl|cmpl)-(?P<created>[0-9a-f]{8})[0-9a-f]{24}(?:\.(?P<count>[0-9]{1,4}))?"
)
MAX_PROMPTS: Final = 512


def new_id(prefix: str, num_jobs: int = 1) -> str:
    several = f".{num_jobs}" if num_jobs > 1 else ""
    return f"{prefix}-{int(time.time()):08x}{secrets.token_hex(12)}{several}"


def jobs_of(answer_id: str) -> list[str]:
    """Return the job ids of an answer. An id that the gateway did not make is a job id itself."""
    found = _OURS.fullmatch(answer_id)
    count = int(found["count"]) if found is not None and found["count"] else 1
    if not 1 < count <= MAX_PROMPTS:
        return [answer_id]
    return [f"{answer_id}.{index}" for index in range(count)]


def answer_of(job_id: str) -> str:
    """Return the id of the answer that a job belongs to."""
    answer_id, _, index = job_id.rpartition(".")
    return answer_id if index.isdecimal() and job_id in jobs_of(answer_id)[:MAX_PROMPTS] else job_id


def created_at(answer_id: str) -> int:
    """Return the seconds since the epoch, or 0 if the id does not contain them."""
    found = _OURS.fullmatch(answer_id)
    return 0 if found is None else int(found["created"], 16)
