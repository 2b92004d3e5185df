"""``GET /``: a page to chat with and to see one's jobs on. Files as they are; the browser does the rest.

The page has no rights of its own: it asks the same addresses as everybody, with the key that is typed in.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from pagefleet.api.gateway.http.errors import ApiError

_KINDS: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_PAGE: Final = "index.html"
_POLICY: Final = (
    # Nothing but these files is code, and no text becomes markup.
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Asked for again each time, and sent again only where it has changed.
    "cache-control": "no-cache",
}


class _Part(NamedTuple):
    content: bytes
    kind: str
    etag: str


async def show(request: Request) -> Response:
    return _answer(request, _PAGE)


async def part(request: Request) -> Response:
    name = request.path_params["name"]
    # The page itself stands at the root only: its links are relative.
    return _answer(request, "" if name == _PAGE else name)


def _answer(request: Request, name: str) -> Response:
    found = _parts().get(name)
    if found is None:
        raise ApiError(404, f"Invalid URL ({request.method} {request.url.path}).", code="unknown_url")
    headers = {**_HEADERS, "etag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers={**headers, "content-type": f"{found.kind}; charset=utf-8"})


@cache
def _parts() -> dict[str, _Part]:
    """All of the page, by name: nothing else can be asked for."""
    found = {}
    for each in (files(__package__) / "static").iterdir():
        content, (_, _, suffix) = each.read_bytes(), each.name.rpartition(".")
        etag = hashlib.sha256(content).hexdigest()[:16]
        found[each.name] = _Part(content, _KINDS[suffix], f'"{etag}"')
    return found
