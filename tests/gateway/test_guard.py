"""Every route needs an API key unless it is declared public, also a route that is added later."""

from __future__ import annotations

import re

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from pagefleet.api.config.settings import GatewaySettings
from pagefleet.api.gateway.access.key_file import KeyFile
from pagefleet.api.gateway.app import PUBLIC, ROUTES, make_app, pattern_of


async def hello(request):
    return PlainTextResponse("hello")


@pytest.fixture
def token_and_app(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    token, _key = file.add(tenant="acme")
    return token, make_app(GatewaySettings(gateway_keys_file=file.path))


def client_of(app, **headers):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway", headers=headers)


def requests_of(routes):
    for route in routes:
        for method in getattr(route, "methods", None) or ["GET"]:
            yield method, re.sub(r"\{.*?\}", "x", pattern_of(route))


def test_the_public_routes_are_these():
    paths = {"/", "/page/{path}", "/health", "/ready", "/metrics", "/openapi.json"}
    assert {pattern_of(route) for route in PUBLIC} == paths


async def test_each_other_route_answers_401_without_a_key(token_and_app):
    _token, app = token_and_app
    requests = [*requests_of(route for route in ROUTES if route not in PUBLIC)]
    assert len(requests) > 10
    async with client_of(app) as client:
        for method, path in requests:
            reply = await client.request(method, path)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), (method, path)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/nothing")).status_code == 404
        assert (await client.get("/tokenize")).status_code == 405


@pytest.mark.parametrize(
    "route", [Route("/later", hello, methods=["GET", "PUT"]), Mount("/under", routes=[Route("/it", hello)])]
)
async def test_a_route_that_is_added_later_needs_a_key_too(token_and_app, route):
    token, app = token_and_app
    app.router.routes.append(route)
    path = "/under/it" if isinstance(route, Mount) else "/later"
    async with client_of(app) as stranger, client_of(app, authorization=f"Bearer {token}") as owner:
        assert (await stranger.get(path)).status_code == 401
        reply = await owner.get(path)
        assert (reply.status_code, reply.text) == (200, "hello")
