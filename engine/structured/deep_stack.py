"""run_on_deep_stack: calls into libraries whose recursion is as deep as the nesting of their input."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

__all__ = ["run_on_deep_stack"]

STACK_BYTES: Final = 256 * 2**20
"""Reserved address space; memory is only used for what the thread touches. With the usual 8 MiB a chain of
3,000 references overflows the stack and ends the process."""

T = TypeVar("T")
_starting = threading.Lock()


def run_on_deep_stack(call: Callable[[], T]) -> T:
    """Run `call` in a thread with a large stack and return its result.

    Raises what `call` raises, or RuntimeError instead of a BaseException (a panic in Rust code).
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001
            outcome.set_exception(error)
        except BaseException as error:  # noqa: BLE001
            outcome.set_exception(RuntimeError(str(error)))

    # The stack size is a setting of the process: it also applies to other threads that start meanwhile.
    with _starting:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="pagefleet-deep-stack", daemon=True).start()
        finally:
            threading.stack_size(before)
    return outcome.result()
