"""JSON of large responses, encoded in a thread without blocking the event loop.

The encoder holds the interpreter lock while it encodes one value, which would block the event loop although
another thread does the work. Encoding small slices releases it in between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from starlette.responses import Response

_SLICE: Final = 64
"""Number of list items that are encoded at once."""
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def sliced_json(value: Any) -> Iterator[str]:
    """Yield the parts of what :func:`json.dumps` returns."""
    if isinstance(value, dict):
        yield "{"
        for index, (name, each) in enumerate(value.items()):
            yield f"{',' if index else ''}{_encode(str(name))}:"
            yield from sliced_json(each)
        yield "}"
    elif isinstance(value, list) and len(value) <= _SLICE and any(isinstance(each, dict) for each in value):
        yield "["
        for index, each in enumerate(value):
            yield "," if index else ""
            yield from sliced_json(each)
        yield "]"
    elif isinstance(value, list) and len(value) > _SLICE:
        for begin in range(0, len(value), _SLICE):
            yield f"{',' if begin else '['}{_encode(value[begin : begin + _SLICE])[1:-1]}"
        yield "]"
    else:
        yield _encode(value)


async def large_answer(make: Callable[[], Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response of what ``make`` returns; both run in a thread."""

    def content() -> bytes:
        return "".join(sliced_json(make())).encode()

    return Response(await asyncio.to_thread(content), media_type="application/json", headers=headers)
