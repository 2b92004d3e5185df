"""What asynchronous code awaits. ``sync_io`` has the same names; the synchronous code is generated
from the asynchronous and uses those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Lock = asyncio.Lock
sleep = asyncio.sleep


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a slow or blocking call without blocking the event loop. Returns what it returns."""
    return await asyncio.to_thread(call, *args, **kwargs)
