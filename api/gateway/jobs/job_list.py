"""``GET /v1/jobs``: the newest jobs of a tenant.

SUBMIT keeps a list of the newest 500 jobs of each tenant (``keys.recent_jobs``), from all clients. A job is
listed until its results expire. Prompts and answers are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.gateway.access.authentication import tenant_of
from pagefleet.api.gateway.answers.job_ids import answer_of, jobs_of
from pagefleet.api.gateway.context import Gateway, reader_of
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.gateway.jobs.job_shape import job_fields
from pagefleet.api.protocol.job_record import JobRecord

_MOST: Final = 100
_USUALLY: Final = 20
_MAX_CHARS: Final = 128


async def show_all(request: Request) -> Response:
    gateway, key = reader_of(request)
    limit, after = _limit(request), request.query_params.get("after")
    await gateway.fleet.open()
    # Several prompts of one request are one answer.
    answers = list(dict.fromkeys(map(answer_of, await gateway.fleet.recent_jobs(tenant_of(key)))))
    if after is not None:
        if after not in answers:
            raise ApiError(
                400,
                f"after: {after[:_MAX_CHARS]!r} is not in the list of jobs.",
                param="after",
                code="invalid_value",
            )
        answers = answers[answers.index(after) + 1 :]
    found: list[dict[str, Any]] = []
    # Read one more than requested to know whether there are more; some may have expired.
    while answers and len(found) <= limit:
        part, answers = answers[: limit + 1], answers[limit + 1 :]
        found += await _read(gateway, part, tenant_of(key))
    data = found[:limit]
    page = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
    return JSONResponse(page)


async def _read(gateway: Gateway, answers: Iterable[str], tenant: str | None) -> list[dict[str, Any]]:
    job_ids = {answer: jobs_of(answer) for answer in answers}
    records = await gateway.fleet.job_heads([each for ids in job_ids.values() for each in ids])
    found = []
    for answer, ids in job_ids.items():
        mine = [records[each] for each in ids if each in records]
        # After a job expires, another tenant can use its id.
        if mine and _is_of(mine, tenant):
            found.append(job_fields(answer, mine))
    return found


def _is_of(records: Iterable[JobRecord], tenant: str | None) -> bool:
    return all(record.tenant == tenant for record in records)


def _limit(request: Request) -> int:
    """Raises: ApiError."""
    text = request.query_params.get("limit", str(_USUALLY))
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= _MOST):
        raise ApiError(
            400, f"limit: must be a number from 1 to {_MOST}.", param="limit", code="invalid_value"
        )
    return int(text)
