"""A Hugging Face hub of a few folders, for the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

DEFAULT_REVISION = "main"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. Weights are stored with LFS, as on the real hub."""

    name: str
    content: bytes
    claimed_size: int | None = None
    """The size that the hub reports, if it is not that of the content."""

    @cached_property
    def etag(self) -> str:
        digest = hashlib.sha256 if self.is_lfs else hashlib.sha1
        return digest(self.content).hexdigest()

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(".safetensors")

    @property
    def size(self) -> int:
        return len(self.content) if self.claimed_size is None else self.claimed_size

    def entry(self) -> dict[str, Any]:
        lfs = {"oid": self.etag, "size": self.size, "pointerSize": 134}
        entry = {"type": "file", "oid": "0" * 40 if self.is_lfs else self.etag, "size": self.size}
        return entry | {"path": self.name} | ({"lfs": lfs} if self.is_lfs else {})


@dataclass
class FakeHub:
    """The server. Its counters may be read, and its switches set, at any time."""

    address: str = ""
    fetched: list[str] = field(default_factory=list)
    """Owner, name and file of each body that was sent."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range headers of these requests."""
    hold_after: int | None = None
    """Stop sending a body after this number of bytes, until `released` is set."""
    released: threading.Event = field(default_factory=threading.Event)
    ignores_ranges_of: str = ""
    """Owner, name and file of a body that is always sent from its beginning."""


@contextmanager
def fake_hub(models: Mapping[str, Mapping[str, bytes | HubFile]], gated: str = "") -> Iterator[FakeHub]:
    """Serve models by id and file name. An id can end in @ and a branch or tag; otherwise it is main."""
    hub = FakeHub()
    files = {
        model if "@" in model else f"{model}@{DEFAULT_REVISION}": {
            name: each if isinstance(each, HubFile) else HubFile(name, each) for name, each in content.items()
        }
        for model, content in models.items()
    }

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(sends_body=False)

        def do_GET(self) -> None:
            self._answer(sends_body=True)

        def _answer(self, *, sends_body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith("api/models/"):
                owner, name, what, revision = (*path.split("/")[2:6], "", DEFAULT_REVISION)[:4]
                file = ""
            else:
                owner, name, _, revision, file = (*path.split("/", 4), "", "", "", "")[:5]
                what = "file"
            model = f"{owner}/{name}"
            keys = (f"{model}@{revision}", _key(files, revision))
            key = next((key for key in files if key in keys), None)
            if model == gated:
                self._refuse(403, "GatedRepo")
            elif not any(key.startswith(f"{model}@") for key in files):
                self._refuse(404, "RepoNotFound")
            elif key is None:
                self._refuse(404, "RevisionNotFound")
            elif what == "file" and file not in files[key]:
                self._refuse(404, "EntryNotFound")
            else:
                self._commit = _commit(files, key)
                if what == "file":
                    self._send_file(f"{model}/{file}", files[key][file], sends_body=sends_body)
                else:
                    self._send_listing(model, what, list(files[key].values()))

        def _send_listing(self, model: str, what: str, found: list[HubFile]) -> None:
            siblings = [{"rfilename": each.name} for each in found]
            info = {"id": model, "modelId": model, "sha": self._commit, "siblings": siblings}
            self._send(200, json.dumps([each.entry() for each in found] if what == "tree" else info).encode())

        def _send_file(self, name: str, file: HubFile, *, sends_body: bool) -> None:
            headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": self._commit}
            wanted = None if name == hub.ignores_ranges_of else self.headers["Range"]
            start = 0 if wanted is None else int(wanted.removeprefix("bytes=").removesuffix("-"))
            if wanted is not None:
                headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
            if sends_body:
                hub.fetched.append(name)
                hub.ranges.append(self.headers["Range"])
                self._send(200 if wanted is None else 206, file.content[start:], headers)
            else:
                self._send(200, b"", headers | {"Content-Length": str(file.size)})

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if hub.hold_after is not None and len(body) > hub.hold_after:
                self.wfile.write(body[: hub.hold_after])
                hub.released.wait()
                body = body[hub.hold_after :]
            # A client that was killed does not read the rest.
            with suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _commit(files: Mapping[str, object], key: str) -> str:
    return f"{list(files).index(key) + 1:040x}"


def _key(files: Mapping[str, object], commit: str) -> str | None:
    return next((key for key in files if _commit(files, key) == commit), None)
