"""Keyring: the API keys that a gateway accepts, kept up to date with their store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Mapping
from typing import Final

from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.gateway.access.api_keys import ApiKey, KeyStore, find_key

_LOG: Final = logging.getLogger(__name__)
_POLL_S: Final = 0.5


class Keyring:
    """A copy of the keys in a store; it sees a change within a second.

    While the store cannot be read, the keys stay as they were: an outage neither opens the gateway nor locks
    all clients out.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._keys: Mapping[str, ApiKey] | None = None
        self._version: Hashable | None = None
        self._failure = ""

    def find(self, token: str) -> ApiKey | None:
        """Return the key that a client sent, or None if it is unknown.

        Raises:
            RedisUnavailable: no keys have been loaded yet.
        """
        if self._keys is None:
            raise RedisUnavailable("The API keys have not been loaded yet.")
        return find_key(self._keys, token)

    def load(self) -> None:
        """Read the keys if they have changed.

        Raises:
            ConfigurationError, RedisUnavailable
        """
        version = self._store.version()
        # A Redis server that lost its data has no version: its keys are gone too.
        if self._keys is None or version is None or version != self._version:
            self._keys = {key.key_id: key for key in self._store.read()}
            self._version = version

    async def follow(self) -> None:
        """Load each change until cancelled. It never fails: revoked keys would stay valid, unnoticed."""
        while True:
            await asyncio.to_thread(self.try_load)
            await asyncio.sleep(_POLL_S)

    def try_load(self) -> None:
        """Like :meth:`load`, but log the error instead of raising it; the same error only once in a row."""
        try:
            self.load()
        except RedisUnavailable as error:
            # Requests report the outage.
            _LOG.debug("The API keys cannot be read: %s", error)
        except Exception as error:  # noqa: BLE001
            if str(error) != self._failure:
                message = "The API keys cannot be reloaded, so later changes have no effect: %s"
                _LOG.error(message, error, exc_info=not isinstance(error, FleetError))
            self._failure = str(error)
        else:
            self._failure = ""

    def close(self) -> None:
        self._store.close()
