"""A Hugging Face hub of a few folders, for the real huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "1" * 40


@contextmanager
def fake_hub(models: Mapping[str, Mapping[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Serves models by id and file name: the hub's address, and the files that were fetched from it."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(sends_body=False)

        def do_GET(self) -> None:
            self._answer(sends_body=True)

        def _answer(self, *, sends_body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            owner, name, _, _, file = (*path.split("/", 4), "", "", "", "")[:5]
            if path.startswith("api/models/"):
                owner, name, what = path.removeprefix("api/models/").split("/", 2)
                self._send(200, _listing(f"{owner}/{name}", models, what), sends_body=sends_body)
            elif (content := models.get(f"{owner}/{name}", {}).get(file)) is None:
                self._send(404, b"", sends_body=sends_body, headers={"X-Error-Code": "EntryNotFound"})
            else:
                if sends_body:
                    fetched.append(f"{owner}/{name}/{file}")
                self._send(200, content, sends_body=sends_body)

        def _send(
            self, status: int, content: bytes, *, sends_body: bool, headers: Mapping[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if sends_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _listing(hub_id: str, models: Mapping[str, Mapping[str, bytes]], what: str) -> bytes:
    files = models[hub_id]
    if what.startswith("tree"):
        entries = [
            {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
            for name, content in files.items()
        ]
        return json.dumps(entries).encode()
    siblings = [{"rfilename": name} for name in files]
    return json.dumps({"id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings}).encode()
