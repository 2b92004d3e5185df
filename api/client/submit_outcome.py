"""What a failed SUBMIT may have done."""

from __future__ import annotations

from typing import Final

import redis

from pagefleet.api.contract.errors import RedisUnavailable

SETTLE_FOR_S: Final = 1.0
"""For this long a submit with an unknown outcome is repeated, with the same id."""


def may_have_arrived(error: BaseException) -> bool:
    """Return whether the server may have run the call: no reply came. A call that the server refuses has no
    effect."""
    return isinstance(error.__cause__, redis.ConnectionError | redis.TimeoutError | OSError)


def outcome_unknown(error: RedisUnavailable, job_id: str) -> RedisUnavailable:
    """Return the error for a submit that may have arrived."""
    return RedisUnavailable(
        f"{error.message} The job may have been submitted. Call again with job_id={job_id!r}: that reads the "
        "job, or submits it if it does not exist.",
        job_id=job_id,
    )
