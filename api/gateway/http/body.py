"""Request bodies: read them within limits, validate them, and report unknown fields."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.http.errors import ApiError, invalid_body

IGNORED_HEADER: Final = "x-pagefleet-ignored"
_PARSED_AT_ONCE: Final = 2**16
_MAX_NAMED: Final = 20
_MAX_NAME_CHARS: Final = 64


class RequestBody(BaseModel):
    """Base class of bodies and their parts. Unknown fields are kept, so that they can be reported."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


B = TypeVar("B", bound=RequestBody)


async def read_body(request: Request, model: type[B], settings: GatewaySettings) -> B:
    """Return the validated body. Raises: ApiError (400, 408, 413, 415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A foreign web page cannot send this type without a CORS preflight request.
        raise ApiError(
            415, "Send the body as `Content-Type: application/json`.", code="unsupported_content_type"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise ApiError(
            415,
            f"Content-Encoding {encoding[:32]!r} is not supported; send the body uncompressed.",
            code="unsupported_content_encoding",
        )
    try:
        async with asyncio.timeout(settings.gateway_body_timeout_s):
            content = await _read(request, settings.gateway_max_body_bytes)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body was not received within {settings.gateway_body_timeout_s:g} s.",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None
    try:
        if len(content) > _PARSED_AT_ONCE:
            body = await asyncio.to_thread(model.model_validate_json, content)
        else:
            body = model.model_validate_json(content)
    except ValidationError as error:
        raise invalid_body(error) from None
    unknown = next(_unknown(body), None)
    if unknown is not None and settings.gateway_strict:
        name = unknown[:_MAX_NAME_CHARS]
        raise ApiError(
            400, f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
        )
    return body


def ignored_headers(body: RequestBody) -> Mapping[str, str]:
    """Return the header that lists the unknown fields of a body; empty without any."""
    names = [
        "".join(c if (c.isalnum() and c.isascii()) or c in "_-.[]" else "?" for c in name[:_MAX_NAME_CHARS])
        for name in islice(_unknown(body), _MAX_NAMED)
    ]
    return {IGNORED_HEADER: ", ".join(names)} if names else {}


def _unknown(body: RequestBody, place: str = "") -> Iterator[str]:
    """Yield the paths of unknown fields, such as ``messages[0].colour``."""
    for name in body.model_extra or ():
        yield f"{place}{name}"
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, RequestBody):
            yield from _unknown(value, f"{place}{name}.")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, RequestBody):
                    yield from _unknown(each, f"{place}{name}[{index}].")


async def _read(request: Request, most: int) -> bytes:
    too_large = ApiError(
        413,
        f"The body is larger than the limit of {most} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def refuse(body: RequestBody, reasons: Mapping[str, str], place: str = "") -> None:
    """Reject unsupported fields that cannot be ignored, because the answer would be wrong without them.

    Args:
        reasons: by field, the end of the error message.
        place: the path of ``body`` in the request's body, with a dot at its end.

    Raises:
        ApiError (400): a field has a value other than an empty one.
    """
    for name, reason in reasons.items():
        value: Any = (body.model_extra or {}).get(name)
        if value not in (None, [], {}, False, ""):
            param = f"{place}{name}"
            raise ApiError(400, f"{param}: {reason}.", param=param, code="unsupported_parameter")
