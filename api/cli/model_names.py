"""Shell completion of model names, which are read from Redis."""

from __future__ import annotations

from typing import Final

import click

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.protocol.job_store import JobStore

_TIMEOUT_S: Final = 0.3


def complete_model(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the matching names and aliases; none if Redis does not answer, as Tab must not print errors."""
    try:
        settings = FleetSettings.from_files(redis_url=ctx.params.get("redis_url"))
        timeouts = {"connect_timeout_s": _TIMEOUT_S, "socket_timeout_s": _TIMEOUT_S}
        store = JobStore(settings.model_copy(update=timeouts))
        names = [name for card in store.cards() for name in (card.name, *card.aliases)]
    except FleetError:
        return []
    return [name for name in names if name.startswith(incomplete)]
