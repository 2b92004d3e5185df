"""A real ``pagefleet flower``, and what it answers."""

from __future__ import annotations

import base64
import contextlib
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from pagefleet.workers.local.ports import free_port
from pagefleet.workers.threads.polling import wait_until

USER = "admin:sentinel-flower"


class FlowerPage:
    """The dashboard as somebody sees it who comes as ``user``."""

    def __init__(self, port, user=USER):
        self.port = port
        self._headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()}

    def get(self, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=self._headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def status(self, path):
        """The HTTP status, 0 where nobody listens."""
        try:
            self.get(path)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0
        return 200


@contextlib.contextmanager
def running_flower(redis_url, folder):
    """The command, until it has been asked to end and has done so."""
    (folder / "users").write_text(USER + "\n")
    port, log_file = free_port(), folder / "flower.log"
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "flower", "--port", str(port)]
    command += ["--auth-file", str(folder / "users"), "--redis-url", redis_url]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        page = FlowerPage(port)
        assert wait_until(lambda: page.status("/healthcheck") == 200, 60, 0.1), log_file.read_text()
        yield page
    finally:
        process.send_signal(signal.SIGTERM)
        exit_status = process.wait(60)
    assert exit_status == 0, log_file.read_text()
