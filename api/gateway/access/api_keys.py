"""ApiKey and KeyStore: what an API key may do, and the interface of the places that store keys.

A key is ``pf-<id>-<secret>`` with a secret of 256 random bits. Only its hash is stored; one round of SHA-256
is enough, because 2**256 values cannot be searched.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.contract.keys import Lane

_UNKNOWN_KEY: Final = hashlib.sha256(b"").hexdigest()
"""Compared with tokens whose id is unknown, so that they take as long as the others. No key has this hash."""
_Limit = Annotated[int, Field(gt=0)]


class ApiKey(BaseModel):
    """An API key without its secret, and its limits; None is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(pattern=r"^[0-9a-z]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str = Field(min_length=1, max_length=128, description="the tenant whose jobs the key can access")
    models: list[str] | None = Field(None, description="canonical names or aliases")
    lane: Lane = "interactive"
    max_open: _Limit | None = Field(None, description="choices of the tenant's open jobs in each queue")
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_stored_bytes: _Limit | None = Field(None, description="of the tenant's requests and results")
    max_result_ttl_s: _Limit | None = Field(None, description="the longest result_ttl_s of a request")
    created_at: int = 0

    def may_use(self, names: set[str]) -> bool:
        return self.models is None or not names.isdisjoint(self.models)


class KeyStore(ABC):
    """A place that stores API keys. Several processes can read and change it at the same time."""

    name: str

    @abstractmethod
    def version(self) -> Hashable | None:
        """Return a value that changes with each change of the keys, or None if it is not known.

        Raises:
            RedisUnavailable
        """

    @abstractmethod
    def read(self) -> list[ApiKey]:
        """Return all keys.

        Raises:
            ConfigurationError: the store cannot be read.
            RedisUnavailable
        """

    def add(self, **fields: object) -> tuple[str, ApiKey]:
        """Create a key. Return it with its secret, which is not stored, and without.

        Raises:
            ConfigurationError: a field is wrong, or the store cannot be read or written.
            RedisUnavailable
        """
        token, key = _new_key(**fields)
        self._add(key)
        return token, key

    @abstractmethod
    def _add(self, key: ApiKey) -> None: ...

    @abstractmethod
    def revoke(self, key_id: str) -> bool:
        """Remove a key. Return False if the store does not contain it.

        Raises:
            ConfigurationError, RedisUnavailable
        """

    def close(self) -> None:  # noqa: B027
        """Close the connections of the store, if it has any."""


def find_key(known: Mapping[str, ApiKey], token: str) -> ApiKey | None:
    """Return the key that a client sent, or None if it is unknown. The comparison takes constant time."""
    key = known.get(token[3:11])
    same = hmac.compare_digest(_hash(token), _UNKNOWN_KEY if key is None else key.sha256)
    return key if same else None


def _new_key(**fields: object) -> tuple[str, ApiKey]:
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    token = f"pf-{key_id}-{secret}"
    given = {name: value for name, value in fields.items() if value is not None}
    given |= {"key_id": key_id, "sha256": _hash(token), "created_at": int(time.time())}
    try:
        return token, ApiKey.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{place}: {first['msg']}.") from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
