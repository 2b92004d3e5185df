"""Completes the names of models from Redis, if that answers at once."""

from __future__ import annotations

from typing import Final

import click

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.protocol.job_store import JobStore

_PATIENCE_S: Final = 0.3


def complete_model(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """None where the server is away: whoever presses Tab wants no error."""
    try:
        settings = FleetSettings.from_files(redis_url=ctx.params.get("redis_url"))
        patience = {"connect_timeout_s": _PATIENCE_S, "socket_timeout_s": _PATIENCE_S}
        store = JobStore(settings.model_copy(update=patience))
        names = [name for card in store.cards() for name in (card.name, *card.aliases)]
    except FleetError:
        return []
    return [name for name in names if name.startswith(incomplete)]
