"""API keys: what each may do, and of the key itself a hash only; in a JSON file, or in Redis (redis_keys.py).

A key is ``pf-<id>-<secret>`` with 256 random bits in its secret: one round of SHA-256 is enough for it,
nobody tries them all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.contract.keys import Lane

_LOG: Final = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 1.0
_NOBODY: Final = hashlib.sha256(b"").hexdigest()
_Limit = Annotated[int, Field(gt=0)]


class ApiKey(BaseModel):
    """One key and what it may do; None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(pattern=r"^[0-9a-z]{8}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant: str = Field(min_length=1, max_length=128, description="on whose behalf: sees its own jobs only")
    models: list[str] | None = Field(None, description="canonical names or aliases")
    lane: Lane = "interactive"
    max_open: _Limit | None = Field(None, description="choices in the tenant's open jobs in each queue")
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_stored_bytes: _Limit | None = Field(None, description="of the tenant's requests and results")
    max_result_ttl_s: _Limit | None = Field(None, description="how long results can be read")
    created_at: int = 0

    def may_use(self, names: set[str]) -> bool:
        return self.models is None or not names.isdisjoint(self.models)


def new_key(**fields: object) -> tuple[str, ApiKey]:
    """The key itself, and what may be kept of it."""
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    token = f"pf-{key_id}-{secret}"
    given = {name: value for name, value in fields.items() if value is not None}
    return token, ApiKey.model_validate(
        {**given, "key_id": key_id, "sha256": _hash(token), "created_at": int(time.time())}
    )


def find_key(known: Mapping[str, ApiKey], token: str) -> ApiKey | None:
    """The key that this is, compared in constant time."""
    key = known.get(token[3:11])
    same = hmac.compare_digest(_hash(token), _NOBODY if key is None else key.sha256)
    return key if same else None


class Finder(Protocol):
    """Where the keys stand is its own matter."""

    def find(self, token: str) -> ApiKey | None:
        """The key that this is. Raises: RedisUnavailable: nobody knows yet which there are."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    keys: list[ApiKey] = Field(default_factory=list)


class KeyFile:
    """Reads and changes a file of keys; several processes may."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return str(self.path)

    def read(self) -> list[ApiKey]:
        """Raises: ConfigurationError: it cannot be read or is none."""
        try:
            return _File.model_validate_json(self.path.read_bytes()).keys
        except OSError as error:
            raise ConfigurationError(f"gateway_keys_file: {self.path}: {error.strerror}.") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"gateway_keys_file: {self.path}: {place}: {first['msg']}.") from None

    def add(self, **fields: object) -> tuple[str, ApiKey]:
        """The new key itself, which is written nowhere, and what is."""
        token, key = new_key(**fields)
        with self._locked():
            self._write([*(self.read() if self.path.exists() else []), key])
        return token, key

    def revoke(self, key_id: str) -> bool:
        with self._locked():
            keys = self.read()
            left = [key for key in keys if key.key_id != key_id]
            self._write(left)
        return len(left) < len(keys)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock")
        with lock.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _write(self, keys: list[ApiKey]) -> None:
        """In one move, for its owner's eyes: root's change leaves it to the gateway that reads it."""
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        text = json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            if self.path.exists():
                old = self.path.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            stream.write(text + "\n")
            stream.flush()
            os.fsync(descriptor)
        part.replace(self.path)


class Keyring:
    """The keys of a file as they are now: a change is seen within a second. A file that has become
    unreadable changes nothing: neither lets it everybody in, nor locks it everybody out."""

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)
        self._look_at = 0.0
        self._stamp = self._stat()
        self._complained_of: tuple[int, int, int] | None = None
        self._keys = self._read()

    def find(self, token: str) -> ApiKey | None:
        """The key that this is, compared in constant time."""
        self._refresh()
        return find_key(self._keys, token)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        stamp = self._stat()
        if stamp != self._stamp:
            try:
                self._keys = self._read()
                self._stamp, self._complained_of = stamp, None
            except ConfigurationError as error:
                # Once for each state of the file, not each second; it is tried again all the same.
                if stamp != self._complained_of:
                    _LOG.error("The keys stay as they were, what was revoked since is not: %s", error)
                self._complained_of = stamp

    def _read(self) -> dict[str, ApiKey]:
        return {key.key_id: key for key in self._file.read()}

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = self._file.path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
