"""API keys in Redis: one hash for all replicas, key id -> the key as JSON, and a stamp of the last change.

Who may write it can let himself in: a producer's user reads it only (ops/redis/users.acl).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.gateway.access.api_keys import ApiKey, find_key, new_key
from pagefleet.api.gateway.fleet import GatewayFleet
from pagefleet.api.protocol.connection import connect, redis_errors

_LOG: Final = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.5


class RedisKeys:
    """Reads and changes them; several processes may."""

    name: Final = "Redis"

    def __init__(self, settings: FleetSettings) -> None:
        self._url = settings.url
        self._redis = connect(settings)

    def read(self) -> list[ApiKey]:
        """By id. Raises: RedisUnavailable."""
        with redis_errors(self._url):
            found: Any = self._redis.hgetall(keys.API_KEYS)
        return sorted(parse_keys(found).values(), key=lambda key: key.key_id)

    def add(self, **fields: object) -> tuple[str, ApiKey]:
        """The new key itself, which is written nowhere, and what is. Raises: RedisUnavailable."""
        token, key = new_key(**fields)
        with redis_errors(self._url), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.API_KEYS, key.key_id, key.model_dump_json(exclude_none=True))
            pipeline.hset(keys.API_KEYS, keys.API_KEYS_STAMP, uuid.uuid4().hex)
            pipeline.execute()
        return token, key

    def revoke(self, key_id: str) -> bool:
        """Raises: RedisUnavailable."""
        if key_id == keys.API_KEYS_STAMP:
            return False
        with redis_errors(self._url), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hdel(keys.API_KEYS, key_id)
            pipeline.hset(keys.API_KEYS, keys.API_KEYS_STAMP, uuid.uuid4().hex)
            return bool(pipeline.execute()[0])

    def close(self) -> None:
        self._redis.close()


class RedisKeyring:
    """The keys as they are now: a change is seen within a second. While Redis is away they stay what they
    were; before it was ever there nobody knows who may come in."""

    def __init__(self) -> None:
        self._keys: Mapping[str, ApiKey] | None = None
        self._stamp: str | None = None

    def find(self, token: str) -> ApiKey | None:
        """The key that this is, compared in constant time. Raises: RedisUnavailable: none is known yet."""
        if self._keys is None:
            raise RedisUnavailable("The API keys could not be read yet.")
        return find_key(self._keys, token)

    async def follow(self, fleet: GatewayFleet) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            try:
                await self.look(fleet)
            except FleetError as error:
                _LOG.debug("The keys stay as they were: %s", error)
            except Exception:  # noqa: BLE001
                # A task that ended here would leave revoked keys valid, and nobody would know.
                _LOG.error("The keys stay as they were", exc_info=True)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self, fleet: GatewayFleet) -> None:
        """Raises: RedisUnavailable."""
        stamp = await fleet.api_keys_stamp()
        # A server that has lost its data has none: then nobody comes in.
        if self._keys is None or stamp != self._stamp or stamp is None:
            self._keys = parse_keys(await fleet.api_keys())
            self._stamp = stamp


def parse_keys(found: Mapping[str, str]) -> dict[str, ApiKey]:
    """One that cannot be read lets nobody in, and keeps nobody else out."""
    read = {}
    for key_id, text in found.items():
        if key_id == keys.API_KEYS_STAMP:
            continue
        try:
            key: ApiKey | None = ApiKey.model_validate_json(text)
        except ValidationError:
            key = None
        if key is None or key.key_id != key_id:
            _LOG.error("The API key %s in Redis cannot be read: it lets nobody in.", key_id)
            continue
        read[key_id] = key
    return read
