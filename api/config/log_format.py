"""A log format without the text of requests: tracebacks contain the types of exceptions, not their messages.

The exceptions of tokenizers, templates, JSON encoders and pydantic often quote their input.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

PLAIN: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOG: Final = logging.getLogger(__name__)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def redacted_traceback(error: BaseException) -> str:
    """Return a traceback without the messages of exceptions, except those of the operating system."""
    parts: list[str] = []
    for each in _causes(error):
        parts += traceback.format_tb(each.__traceback__)
        parts.append(f"{_type_of(each)}\n")
        if isinstance(each, BaseExceptionGroup):
            parts += [redacted_traceback(inner) + "\n" for inner in each.exceptions]
    return "".join(parts).rstrip("\n")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception and those that caused it, the first cause first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _causes(cause)
    yield error


def _type_of(error: BaseException) -> str:
    cls = type(error)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return f"{name}: {error}" if isinstance(error, OSError) else name


class RedactingFormatter(logging.Formatter):
    """A formatter that redacts tracebacks; also a mixin for other formatters."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802
        return "" if ei[1] is None else redacted_traceback(ei[1])


def log_loop_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of an event loop. asyncio's own also logs the ``repr`` of the task and its error."""
    error = context.get("exception")
    _LOG.error("%s", context["message"], exc_info=error if isinstance(error, BaseException) else None)
