"""JSON of large answers, spelled in a thread that lets others run.

The encoder keeps the interpreter's lock for as long as it is inside of one value: the event loop would stand
still although it is another thread's work.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from starlette.responses import Response

_SLICE: Final = 64
"""Items of a list that are spelled at once."""
_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def sliced_json(value: Any) -> Iterator[str]:
    """As :func:`json.dumps`, in parts."""
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


async def large_answer(told: Callable[[], Any], headers: Mapping[str, str] | None = None) -> Response:
    """What ``told`` returns, made and spelled in a thread."""

    def content() -> bytes:
        return "".join(sliced_json(told())).encode()

    return Response(await asyncio.to_thread(content), media_type="application/json", headers=headers)
