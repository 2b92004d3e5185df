"""RequireKey: every route needs an API key, except the routes that are declared public."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from pagefleet.api.contract.errors import FleetError
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import authenticate
from pagefleet.api.gateway.access.keyring import Keyring
from pagefleet.api.gateway.http.errors import ApiError, api_error

_STATE: Final = "api_key"


class RequireKey:
    """Middleware around the whole application: a route that is added later is protected without any further
    step. It passes on the requests that match no route; the router answers them with a 404 or 405.

    Args:
        keyring: None accepts every client.
        public: the routes that need no key.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring | None, public: Collection[BaseRoute]) -> None:
        self._app = app
        self._keyring = keyring
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._check(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> ApiError | None:
        """Return the error to answer with; without one, the key is stored for the endpoint."""
        for route in scope["app"].routes:
            match, found = route.matches(scope)
            if match is not Match.FULL:
                continue
            if route in self._public:
                return None
            try:
                scope.setdefault("state", {})[_STATE] = authenticate(Request(scope), self._keyring)
            except (ApiError, FleetError) as error:
                # The metrics label the request with its endpoint, which the router does not see.
                scope["endpoint"] = found["endpoint"]
                return error if isinstance(error, ApiError) else api_error(error)
            return None
        return None


def key_of(request: Request) -> ApiKey:
    """Return the API key of a request to a route that is not public."""
    key: ApiKey = getattr(request.state, _STATE)
    return key
