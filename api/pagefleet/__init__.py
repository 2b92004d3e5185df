"""Durable LLM inference: a client for the fleet, and the engine without a queue.

::

    from pagefleet import FleetClient

    with FleetClient() as fleet:
        print(fleet.generate("Once upon a time", max_tokens=64).text())

Importing this package imports nothing else: each name is loaded when it is first used. ``FleetClient`` does
not need torch; ``LLM`` needs the extra ``worker``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pagefleet.api import AsyncFleetClient, FleetClient, FleetError
    from pagefleet.engine import LLM, SamplingParams

__all__ = ["LLM", "AsyncFleetClient", "FleetClient", "FleetError", "SamplingParams"]

_MODULES: Final = {
    "AsyncFleetClient": "pagefleet.api",
    "FleetClient": "pagefleet.api",
    "FleetError": "pagefleet.api",
    "LLM": "pagefleet.engine",
    "SamplingParams": "pagefleet.engine",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
