"""``GET /``: a web page to chat with models and to list jobs.

The page has no rights of its own: it sends requests to the same HTTP API as every other client, with the API
key that its user enters.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_INDEX: Final = "index.html"
_POLICY: Final = (
    # Only these files can run as code, and text never becomes markup.
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Browsers revalidate each file by its ETag, so that an upgrade is visible at once.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """The files that the page loads, with security and cache headers."""

    def __init__(self) -> None:
        super().__init__(packages=[("pagefleet.api.gateway.page", "static")])

    async def get_response(self, path: str, scope: Scope) -> Response:
        # The page itself is served at "/" only, because its links are relative to it.
        if path == _INDEX:
            raise HTTPException(404)
        return await super().get_response(path, scope)

    async def index(self, request: Request) -> Response:
        return await super().get_response(_INDEX, request.scope)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response
