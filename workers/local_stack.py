"""A whole fleet on this machine: a Redis and its workers as child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

from pagefleet.api.errors import FleetError
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import WorkerStatus
from pagefleet.api.settings import FleetSettings
from pagefleet.workers.redis_server import RedisServer

_READY_POLL_S: Final = 0.05
_KILL_AFTER_S: Final = 15.0


class WorkerStartError(FleetError):
    """A worker process ended before it was ready."""

    code = "worker_start"


class WorkerProcess:
    """One ``pagefleet worker`` as a child in a session of its own, so that Ctrl-C does not reach it twice."""

    def __init__(
        self,
        redis_url: str,
        arguments: Sequence[str],
        *,
        log_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.redis_url = redis_url
        self.log_file = log_file
        self._arguments = list(arguments)
        self._environment = {**os.environ, "REDIS_URL": redis_url, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the worker was not started"
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> Self:
        command = [sys.executable, "-m", "pagefleet.api.cli.main", "worker", *self._arguments]
        log: IO[bytes] | None = None
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            log = self.log_file.open("ab")
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=log, stderr=log, start_new_session=True
        )
        if log is not None:
            log.close()
        return self

    def wait_ready(self, timeout_s: float) -> WorkerStatus:
        """Waits until the worker holds a lease.

        Raises:
            WorkerStartError: it ended, or was not ready in time; the message has the end of its log.
        """
        store = JobStore(FleetSettings(redis_url=self.redis_url))
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                for worker in store.workers():
                    if worker.pid == self.pid:
                        return worker
                if self.exit_status is not None or time.monotonic() > deadline:
                    raise WorkerStartError(f"The worker is not ready: {self._log_tail()}")
                time.sleep(_READY_POLL_S)
        finally:
            store.close_connections()

    def terminate(self) -> None:
        """SIGTERM: drain, then exit. Does not wait."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """The exit status; a worker that takes longer is killed."""
        assert self._process is not None, "the worker was not started"
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def read_log(self) -> list[str]:
        """The lines of its log file so far."""
        assert self.log_file is not None, "this worker writes to the terminal"
        return self.log_file.read_text(errors="replace").strip().splitlines()

    def _log_tail(self) -> str:
        if self.log_file is None:
            return f"exit status {self.exit_status}"
        lines = self.read_log()
        return lines[-1] if lines else "it left no log"


class LocalStack:
    """One Redis (embedded, unless ``redis_url`` names one) and some workers of one model.

    Args:
        home: the folder for data and logs.
        worker_arguments: the command line of each worker, as for ``pagefleet worker``.
        quiet: workers write to log files in ``home`` instead of this terminal.
    """

    def __init__(
        self,
        home: Path,
        worker_arguments: Sequence[str],
        *,
        num_workers: int = 1,
        redis_url: str | None = None,
        quiet: bool = True,
        drain_s: float = 20.0,
    ) -> None:
        self.home = home
        self.server = None if redis_url else RedisServer(home / "redis")
        self.redis_url = redis_url or (self.server.url if self.server is not None else "")
        self._drain_s = drain_s
        arguments = [*worker_arguments, "--drain-seconds", str(drain_s)]
        if num_workers > 1:
            # They share the host's cores; the last of two options counts, so a user's own value stays.
            share = max(1, (os.cpu_count() or 1) // num_workers)
            arguments = ["--num-threads", str(share), *arguments]
        self.workers = [
            WorkerProcess(self.redis_url, arguments, log_file=self._log_file(index) if quiet else None)
            for index in range(num_workers)
        ]

    def start(self, ready_timeout_s: float = 300.0) -> Self:
        """Starts everything and waits until every worker serves."""
        try:
            if self.server is not None:
                self.server.start()
            for worker in self.workers:
                worker.start()
            for worker in self.workers:
                worker.wait_ready(ready_timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Drains the workers, then stops the server: nothing in flight is lost."""
        started = [worker for worker in self.workers if worker.exit_status is None and worker._process]
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait(self._drain_s + _KILL_AFTER_S)
        if self.server is not None:
            self.server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write_stack_file(self, path: Path) -> None:
        """Lets ``FleetClient()`` and every command on this machine find the stack without a setting."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"redis_url": self.redis_url, "pid": os.getpid()}))

    def _log_file(self, index: int) -> Path:
        return self.home / f"worker-{index}.log"
