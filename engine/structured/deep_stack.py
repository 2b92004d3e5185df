"""Calls into libraries that recurse as deep as their input is nested."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

__all__ = ["on_deep_stack"]

STACK_BYTES: Final = 256 * 2**20
"""Reserved, not used: a thread takes what it touches. Threads have 8 MiB otherwise, and 3,000 references in a
row end the process."""

T = TypeVar("T")
_starting = threading.Lock()


def on_deep_stack(call: Callable[[], T]) -> T:
    """What `call` returns in a thread with a large stack.

    Raises what it raises, or RuntimeError where that is no Exception (a panic in Rust code).
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001
            outcome.set_exception(error)
        except BaseException as error:  # noqa: BLE001
            outcome.set_exception(RuntimeError(str(error)))

    # The size is the process's, for all threads that begin meanwhile.
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="pagefleet-deep-stack", daemon=True).start()
        finally:
            threading.stack_size(before)
    return outcome.result()
