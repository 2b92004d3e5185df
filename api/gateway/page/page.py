"""``GET /``: a web page to chat with models and to list jobs.

The page has no rights of its own: it sends requests to the same HTTP API as every other client, with the API
key that its user enters.
"""

from __future__ import annotations

import os
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import PathLike, StaticFiles
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
    "accept-ranges": "none",
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

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        # The files are small. starlette would answer a wrong range with an error in plain text.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        return response
