"""Requests and tokens a minute, counted in Redis: all replicas count together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Any, Final, NamedTuple

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import ANYBODY
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.protocol.operation_types import Charge, Operation

_LOG: Final = logging.getLogger(__name__)
_BURST_S: Final = 4.0
ESTIMATED_TOKENS = 256
"""Reserved for an answer whose length the request does not bound."""


class Allowance(NamedTuple):
    """What is left after a request was let in; None where there is no limit."""

    requests: int | None
    tokens: int | None


class RateLimit:
    """A request takes its ``max_tokens`` from the bucket at once. Each of its jobs carries its share: whoever
    closes the job charges what it used instead, the prompt included, whatever became of this gateway."""

    def __init__(self, fleet: GatewayFleet) -> None:
        self._fleet = fleet
        self._giving_back: set[asyncio.Task[None]] = set()

    async def admit(self, key: ApiKey, num_tokens: int) -> Allowance:
        """Raises: ApiError (429), RedisUnavailable."""
        if not _is_limited(key):
            return Allowance(None, None)
        reply = await self._fleet.run(take(key, 1, num_tokens))
        if not reply[0]:
            raise _refusal(key, reply[1], reply[2])
        return Allowance(
            *(
                None if left == -1 and limit is None else max(0, left)
                for left, limit in zip(reply[1:], _limits(key), strict=True)
            )
        )

    def give_back(self, key: ApiKey, num_tokens: int) -> None:
        """Tokens that were reserved for jobs that there never were."""
        if key.tokens_per_minute is not None and num_tokens:
            task = asyncio.create_task(self._give_back(key, num_tokens))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def close(self) -> None:
        for failure in await asyncio.gather(*self._giving_back, return_exceptions=True):
            if failure is not None:
                _LOG.error("Tokens could not be given back", exc_info=failure)

    async def _give_back(self, key: ApiKey, num_tokens: int) -> None:
        with contextlib.suppress(FleetError):
            await self._fleet.run(take(key, 0, -num_tokens, anyway=True))


class ReadLimit:
    """Requests that only read, or end, jobs: so many a second of each key, in this process. They take nothing
    of the key's minute: whoever waits for a job asks again and again."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._full = per_s * _BURST_S
        self._left: dict[str, tuple[float, float]] = {}

    def admit(self, key: ApiKey) -> None:
        """Raises: ApiError (429)."""
        if key is ANYBODY:
            return
        now = time.monotonic()
        left, at = self._left.get(key.key_id, (self._full, now))
        left = min(self._full, left + (now - at) * self._per_s)
        if left < 1:
            raise ApiError(
                429,
                f"Rate limit reached: {self._per_s:g} reading requests per second. Please try again in 1 s.",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        self._left[key.key_id] = (left - 1, now)


def charge_of(key: ApiKey, num_reserved: int) -> Charge | None:
    """None where tokens are not counted."""
    if key.tokens_per_minute is None:
        return None
    return Charge(key.key_id, num_reserved, key.requests_per_minute, key.tokens_per_minute)


def rate_headers(key: ApiKey, allowance: Allowance) -> dict[str, str]:
    """As OpenAI calls them."""
    headers = {}
    for name, limit, left in zip(("requests", "tokens"), _limits(key), allowance, strict=True):
        if limit is not None and left is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(left)
    return headers


def _limits(key: ApiKey) -> tuple[int | None, int | None]:
    return key.requests_per_minute, key.tokens_per_minute


def _is_limited(key: ApiKey) -> bool:
    return any(limit is not None for limit in _limits(key))


def take(key: ApiKey, num_requests: int, num_tokens: int, *, anyway: bool = False) -> Operation[list[Any]]:
    """The script that counts; see there."""
    limits = ["" if limit is None else limit for limit in _limits(key)]
    return Operation("rate", [keys.rate(key.key_id)], [*limits, num_requests, num_tokens, int(anyway)], list)


def _refusal(key: ApiKey, what: str, wait_ms: int) -> ApiError:
    limit = dict(zip(("requests", "tokens"), _limits(key), strict=True))[what]
    seconds = max(1, math.ceil(wait_ms / 1000))
    return ApiError(
        429,
        f"Rate limit reached: {limit} {what} per minute. Please try again in {seconds} s.",
        kind=what,
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )
