"""RedisKeys: API keys in Redis, for gateways on several machines.

One hash contains all keys as JSON by key id, and a version that changes with every write. A user that can
write this hash can create keys: the producer's user only reads it (ops/redis/users.acl).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import redis
from pydantic import ValidationError

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.gateway.access.api_keys import ApiKey, KeyStore
from pagefleet.api.protocol.connection import connect, redis_errors

_LOG: Final = logging.getLogger(__name__)


class RedisKeys(KeyStore):
    name = "Redis"

    def __init__(self, settings: FleetSettings) -> None:
        self._url = settings.url
        self._redis = connect(settings)

    def version(self) -> Hashable | None:
        with redis_errors(self._url):
            return self._redis.hget(keys.API_KEYS, keys.API_KEYS_STAMP)

    def read(self) -> list[ApiKey]:
        """Return all keys that can be parsed, by id."""
        with redis_errors(self._url):
            found: Any = self._redis.hgetall(keys.API_KEYS)
        return sorted(_parse(found), key=lambda key: key.key_id)

    def _add(self, key: ApiKey) -> None:
        with self._write() as pipeline:
            pipeline.hset(keys.API_KEYS, key.key_id, key.model_dump_json(exclude_none=True))
            pipeline.execute()

    def revoke(self, key_id: str) -> bool:
        if key_id == keys.API_KEYS_STAMP:
            return False
        with self._write() as pipeline:
            pipeline.hdel(keys.API_KEYS, key_id)
            return bool(pipeline.execute()[-1])

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def _write(self) -> Iterator[redis.client.Pipeline]:
        """A transaction that also changes the version."""
        with redis_errors(self._url), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.API_KEYS, keys.API_KEYS_STAMP, uuid.uuid4().hex)
            yield pipeline


def _parse(found: Mapping[str, str]) -> Iterator[ApiKey]:
    """One unreadable key must not lock out the owners of the others: it is logged and left out."""
    for key_id, text in found.items():
        if key_id == keys.API_KEYS_STAMP:
            continue
        try:
            key: ApiKey | None = ApiKey.model_validate_json(text)
        except ValidationError:
            key = None
        if key is None or key.key_id != key_id:
            _LOG.error("API key %s in Redis cannot be read and is not accepted.", key_id)
        else:
            yield key
