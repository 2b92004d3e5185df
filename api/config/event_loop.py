"""Which event loop the programs here run on."""

from __future__ import annotations

import importlib.util
from typing import Any


def loop_factory() -> Any:
    """uvloop's where there is one: less than half the time for each event; None for asyncio's own."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
