"""KeyFile: API keys in a JSON file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pagefleet.api.contract.errors import ConfigurationError
from pagefleet.api.gateway.access.api_keys import ApiKey, KeyStore


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")
    keys: list[ApiKey] = Field(default_factory=list)


class KeyFile(KeyStore):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def version(self) -> Hashable | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def read(self) -> list[ApiKey]:
        try:
            return _Content.model_validate_json(self.path.read_bytes()).keys
        except OSError as error:
            raise ConfigurationError(f"gateway_keys_file: {self.path}: {error.strerror}.") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"gateway_keys_file: {self.path}: {place}: {first['msg']}.") from None

    def _add(self, key: ApiKey) -> None:
        with self._locked():
            self._write([*(self.read() if self.path.exists() else []), key])

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
        """Replace the file in one step. It keeps its owner and mode, so that the gateway can still read it
        after a change by root; a new file can be read by its owner only."""
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
