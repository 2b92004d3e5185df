"""``/health``, ``/ready`` and ``/metrics``. They need no key, so they contain no names."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.gateway.context import gateway_of


async def health(request: Request) -> Response:
    """Report that the process runs."""
    return JSONResponse({"status": "ok"})


async def ready(request: Request) -> Response:
    """Report whether Redis answers and each known model has a worker."""
    fleet = gateway_of(request).fleet
    try:
        await fleet.open()
        known = {card.name for card in await fleet.models()}
        served = {worker.model for worker in await fleet.workers()}
    except RedisUnavailable:
        return _not_ready("no Redis")
    if not known:
        return _not_ready("no model is registered yet")
    if missing := known - served:
        return _not_ready(f"{len(missing)} of {len(known)} models have no worker")
    return JSONResponse({"status": "ready", "models": len(known)})


async def metrics(request: Request) -> Response:
    found = gateway_of(request).metrics
    return Response(found.text(), headers={"content-type": found.content_type})


def _not_ready(reason: str) -> Response:
    return JSONResponse({"status": "not ready", "reason": reason}, 503)
