"""Logs without the text of requests: a traceback tells where and of what kind, not in the exception's words.

What a tokenizer, a template, a JSON encoder or pydantic throws often quotes what it was given.
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


def place_of(error: BaseException) -> str:
    """A traceback with the kinds of exceptions in place of their messages; the system's own words stay."""
    parts: list[str] = []
    for each in _causes(error):
        parts += traceback.format_tb(each.__traceback__)
        parts.append(f"{_told(each)}\n")
        if isinstance(each, BaseExceptionGroup):
            parts += [place_of(inner) + "\n" for inner in each.exceptions]
    return "".join(parts).rstrip("\n")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The first one first."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _causes(cause)
    yield error


def _told(error: BaseException) -> str:
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {error}" if isinstance(error, OSError) else name


class PlaceOnly(logging.Formatter):
    """Mixed into any formatter."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802
        return "" if ei[1] is None else place_of(ei[1])


def log_loop_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler. asyncio's own logs the ``repr`` of the task too, and with it the
    exception's."""
    error = context.get("exception")
    _LOG.error("%s", context["message"], exc_info=error if isinstance(error, BaseException) else None)
