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
            # An error of the whole file, such as invalid JSON, has no place.
            place = "".join(f"{part}." for part in first["loc"])[:-1]
            where = ": ".join(filter(None, (str(self.path), place)))
            raise ConfigurationError(f"gateway_keys_file: {where}: {first['msg']}.") from None

    def _add(self, key: ApiKey) -> None:
        with self._locked(make_folder=True):
            self._write([*(self.read() if self.path.exists() else []), key])

    def revoke(self, key_id: str) -> bool:
        self.read()  # raises without leaving a lock file at a wrong path
        with self._locked():
            keys = self.read()
            left = [key for key in keys if key.key_id != key_id]
            self._write(left)
        return len(left) < len(keys)

    @contextlib.contextmanager
    def _locked(self, *, make_folder: bool = False) -> Iterator[None]:
        """Raises: ConfigurationError: the file cannot be written."""
        path = self.path.resolve()
        try:
            if make_folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(path.name + ".lock").open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigurationError(f"gateway_keys_file: {self.path}: {error.strerror}.") from None

    def _write(self, keys: list[ApiKey]) -> None:
        """Replace the file in one step; a symbolic link stays and its target changes.

        The file keeps its owner and mode, so that the gateway can still read it after a change by root; a new
        file can be read by its owner only.
        """
        path = self.path.resolve()
        part = path.with_name(f"{path.name}.{os.getpid()}")
        text = json.dumps({"keys": [key.model_dump(exclude_none=True) for key in keys]}, indent=2)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            if path.exists():
                old = path.stat()
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            stream.write(text + "\n")
            stream.flush()
            os.fsync(descriptor)
        part.replace(path)
