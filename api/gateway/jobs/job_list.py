"""``GET /v1/jobs``: what a tenant asked for last, the newest first.

The newest 500 jobs of a tenant are listed where SUBMIT writes them down (``keys.recent_jobs``), whoever
submitted them, for as long as their results are kept. Prompts and answers are not among what is read.
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
from pagefleet.api.gateway.jobs.job_shape import shown
from pagefleet.api.protocol.job_record import JobRecord

_MOST: Final = 100
_USUALLY: Final = 20


async def show_all(request: Request) -> Response:
    gateway, key = reader_of(request)
    limit, after = _limit(request), request.query_params.get("after")
    await gateway.fleet.open()
    # Several prompts of one request are one answer.
    answers = list(dict.fromkeys(map(answer_of, await gateway.fleet.recent_jobs(tenant_of(key)))))
    if after is not None:
        if after not in answers:
            raise ApiError(400, "after: it is no job of this list.", param="after", code="invalid_value")
        answers = answers[answers.index(after) + 1 :]
    found: list[dict[str, Any]] = []
    # One more than is shown, to know whether there is more; of those that are listed some may have expired.
    while answers and len(found) <= limit:
        part, answers = answers[: limit + 1], answers[limit + 1 :]
        found += await _read(gateway, part, tenant_of(key))
    data = found[:limit]
    told = {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
    return JSONResponse(told)


async def _read(gateway: Gateway, answers: Iterable[str], tenant: str | None) -> list[dict[str, Any]]:
    job_ids = {answer: jobs_of(answer) for answer in answers}
    records = await gateway.fleet.job_heads([each for ids in job_ids.values() for each in ids])
    found = []
    for answer, ids in job_ids.items():
        mine = [records[each] for each in ids if each in records]
        # An id may have been used again by somebody else.
        if mine and _is_of(mine, tenant):
            found.append(shown(answer, mine))
    return found


def _is_of(records: Iterable[JobRecord], tenant: str | None) -> bool:
    return all(record.tenant == tenant for record in records)


def _limit(request: Request) -> int:
    """Raises: ApiError."""
    text = request.query_params.get("limit", str(_USUALLY))
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= _MOST):
        raise ApiError(400, f"limit: a number from 1 to {_MOST}.", param="limit", code="invalid_value")
    return int(text)
