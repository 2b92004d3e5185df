"""Overload: twice as many requests as a fleet can take, through a gateway.

The queue is as deep as the batch: an accepted request runs at once, every other gets a 429. Requests are sent
on a fixed schedule, however many are refused, and are not retried. Single and double load take turns.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import httpx

from ops.chaos.http_reader import events_of
from ops.chaos.report import Overload, percentile
from pagefleet.api.config.settings import GatewaySettings
from pagefleet.workers.local.gateway_process import GatewayProcess
from pagefleet.workers.local.local_stack import LocalStack

_NUM_SEQS: Final = 16
_STEP_S: Final = 0.025
_NUM_TOKENS: Final = 40
_PER_SECOND: Final = _NUM_SEQS / (_NUM_TOKENS * _STEP_S)
_FACTORS: Final = (1, 2, 1, 2)
_WORKER: Final = [
    *("--model", "null", "--backend", "null", "--null-step-time", str(_STEP_S)),
    *("--max-num-seqs", str(_NUM_SEQS), "--max-queue-depth", str(_NUM_SEQS)),
]

REFUSED_GOAL_S: Final = 0.1
"""p99 from a request to its 429."""
MORE_GOAL_S: Final = 0.05
"""By how much the p99 of accepted requests may exceed that at single load."""
_BAR: Final = 3
"""A figure fails beyond this multiple of its goal, because the machine is shared."""


@dataclass(slots=True)
class Asked:
    """One request and its answer, with times."""

    status: int = 0
    head_s: float = 0.0
    retry_after: str | None = None
    code: str | None = None
    tokens_s: list[float] = field(default_factory=list)
    """Seconds from the request to each event with a token."""
    finish_reason: str | None = None


def measure_overload(home: Path, seconds: float) -> Overload:
    """Start a fleet and a gateway, and run each load for ``seconds``."""
    with LocalStack(home / "overload", _WORKER, drain_s=0.0) as stack:
        log_file = home / "overload" / "gateway.log"
        gateway = GatewayProcess(stack.redis_url, GatewaySettings(), 0, log_file=log_file).start()
        try:
            gateway.wait_ready()
            asked = asyncio.run(_take_turns(gateway.url, seconds))
        finally:
            gateway.terminate()
            gateway.wait(30)
    return judge(asked)


def judge(asked: dict[int, list[Asked]]) -> Overload:
    """
    Args:
        asked: the requests by load factor.
    """
    refused = [each for each in asked[2] if each.status == 429]
    single, double = (_accepted(asked[factor]) for factor in (1, 2))
    result = Overload(
        len(refused),
        _p99([each.head_s for each in refused]),
        (_p99([each.tokens_s[0] for each in single]), _p99([each.tokens_s[0] for each in double])),
        (_p99(_gaps(single)), _p99(_gaps(double))),
        _wrong([each for some in asked.values() for each in some]),
    )
    if not refused or not double:
        result.complaints.append(f"of {len(asked[2])} requests {len(refused)} were refused")
    if result.refused_s > _BAR * REFUSED_GOAL_S:
        result.complaints.append(f"a 429 took {result.refused_s:.2f} s")
    for name, (before, after) in (("first token", result.ttft_s), ("token", result.itl_s)):
        if after > before + _BAR * MORE_GOAL_S:
            result.complaints.append(f"a {name} took {after:.3f} s under overload, {before:.3f} s without")
    return result


def _accepted(asked: Sequence[Asked]) -> list[Asked]:
    return [each for each in asked if each.status == 200 and each.tokens_s]


def _wrong(asked: Sequence[Asked]) -> list[str]:
    """Return the answers that are neither complete nor a proper refusal."""
    found = []
    for each in asked:
        match each.status, each.finish_reason, each.code, each.retry_after:
            case (200, "length", _, _) | (429, _, "queue_full", str()):
                pass
            case answer:
                found.append(f"a request was answered {answer}")
    return found


def _gaps(asked: Sequence[Asked]) -> list[float]:
    return [later - earlier for each in asked for earlier, later in pairwise(each.tokens_s)]


def _p99(values: Sequence[float]) -> float:
    return percentile(values, 0.99) or 0.0


async def _take_turns(url: str, seconds: float) -> dict[int, list[Asked]]:
    asked: dict[int, list[Asked]] = {factor: [] for factor in _FACTORS}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=_NUM_SEQS)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        # Connections, imports and caches are warm before anything is measured.
        await _load(http, _PER_SECOND, 1.0)
        for factor in _FACTORS:
            asked[factor] += await _load(http, factor * _PER_SECOND, seconds)
    return asked


async def _load(http: httpx.AsyncClient, per_second: float, seconds: float) -> list[Asked]:
    begun_at = time.monotonic()
    tasks = []
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(begun_at + number / per_second - time.monotonic())
        tasks.append(asyncio.create_task(_ask(http, number)))
    return list(await asyncio.gather(*tasks))


async def _ask(http: httpx.AsyncClient, seed: int) -> Asked:
    asked, begun_at = Asked(), time.monotonic()
    body = {"model": "null", "prompt": "x", "max_tokens": _NUM_TOKENS, "seed": seed, "stream": True}
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        asked.head_s, asked.status = time.monotonic() - begun_at, reply.status_code
        asked.retry_after = reply.headers.get("retry-after")
        if reply.status_code != 200:
            asked.code = json.loads(await reply.aread())["error"]["code"]
            return asked
        async for event in events_of(reply):
            if event.data != "[DONE]":
                _take(asked, json.loads(event.data), time.monotonic() - begun_at)
    return asked


def _take(asked: Asked, data: dict[str, Any], at_s: float) -> None:
    (choice,) = data["choices"]
    if choice["text"]:
        asked.tokens_s.append(at_s)
    asked.finish_reason = choice["finish_reason"] or asked.finish_reason
