"""Rate limits: requests and tokens per minute, counted in Redis over all gateways, and reads per second."""

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
from pagefleet.api.gateway.access.authentication import ANONYMOUS
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.protocol.operation_types import Charge, Operation

_LOG: Final = logging.getLogger(__name__)
_BURST_S: Final = 4.0
ESTIMATED_TOKENS = 256
"""Number of tokens that are reserved for each choice of a request without ``max_tokens``."""


class Allowance(NamedTuple):
    """What is left of the limits after a request is admitted; None is unlimited."""

    requests: int | None
    tokens: int | None


class RateLimit:
    """The limits per minute of each key.

    A request reserves its ``max_tokens`` when it is admitted. Each of its jobs carries its share: the process
    that closes the job charges the tokens it used instead, prompt included, even if this gateway has died.
    """

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
        """Return tokens that were reserved for jobs that were not submitted."""
        if key.tokens_per_minute is not None and num_tokens:
            task = asyncio.create_task(self._give_back(key, num_tokens))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def close(self) -> None:
        for failure in await asyncio.gather(*self._giving_back, return_exceptions=True):
            if failure is not None:
                _LOG.error("Reserved tokens could not be returned", exc_info=failure)

    async def _give_back(self, key: ApiKey, num_tokens: int) -> None:
        with contextlib.suppress(FleetError):
            await self._fleet.run(take(key, 0, -num_tokens, anyway=True))


class ReadLimit:
    """The limit of each key at this gateway for requests that read or end jobs, in requests per second. They
    do not count against the limits per minute, because clients poll while they wait for a job."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._full = per_s * _BURST_S
        self._left: dict[str, tuple[float, float]] = {}

    def admit(self, key: ApiKey) -> None:
        """Raises: ApiError (429)."""
        if key is ANONYMOUS:
            return
        now = time.monotonic()
        left, at = self._left.get(key.key_id, (self._full, now))
        left = min(self._full, left + (now - at) * self._per_s)
        if left < 1:
            raise ApiError(
                429,
                f"Rate limit reached: {self._per_s:g} read requests per second. Retry in 1 s.",
                kind="requests",
                code="rate_limit_exceeded",
                headers={"retry-after": "1"},
            )
        self._left[key.key_id] = (left - 1, now)


def charge_of(key: ApiKey, num_reserved: int) -> Charge | None:
    """Return what the job's end charges to the key, or None if its tokens are not limited."""
    if key.tokens_per_minute is None:
        return None
    return Charge(key.key_id, num_reserved, key.requests_per_minute, key.tokens_per_minute)


def rate_headers(key: ApiKey, allowance: Allowance) -> dict[str, str]:
    """Return the limits and what is left of them in OpenAI's headers."""
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
    """Return the call of the script ``rate.lua``.

    Args:
        anyway: take the tokens even if the limit is exceeded.
    """
    limits = ["" if limit is None else limit for limit in _limits(key)]
    return Operation("rate", [keys.rate(key.key_id)], [*limits, num_requests, num_tokens, int(anyway)], list)


def _refusal(key: ApiKey, what: str, wait_ms: int) -> ApiError:
    limit = dict(zip(("requests", "tokens"), _limits(key), strict=True))[what]
    seconds = max(1, math.ceil(wait_ms / 1000))
    return ApiError(
        429,
        f"Rate limit reached: {limit} {what} per minute. Retry in {seconds} s.",
        kind=what,
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )
