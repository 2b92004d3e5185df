"""What synchronous code calls where asynchronous code awaits: ``async_io`` has the same names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Lock = threading.Lock
sleep = time.sleep


def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the call here: only its caller waits for it."""
    return call(*args, **kwargs)
