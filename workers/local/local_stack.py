"""LocalStack: Redis and workers on this machine, as child processes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract.errors import FleetError
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.workers.local.child_process import ChildProcess
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.local.secret_file import replace_secret
from pagefleet.workers.local.server_endpoint import ServerEndpoint
from pagefleet.workers.local.stack_guard import StackGuard

_READY_POLL_S: Final = 0.05
_KILL_AFTER_S: Final = 15.0


class WorkerStartError(FleetError):
    """The worker ended or was not ready in time."""

    code = "worker_start"


class WorkerProcess(ChildProcess):
    """The process ``pagefleet worker``; ``terminate`` makes it drain."""

    def __init__(
        self,
        redis_url: str,
        arguments: Sequence[str],
        *,
        log_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            "worker",
            ["worker", *arguments],
            # In the environment, as the URL may contain a password: every user can read command lines.
            environment={**os.environ, "PAGEFLEET_REDIS_URL": redis_url, **(environment or {})},
            log_file=log_file,
        )
        self.redis_url = redis_url

    def wait_ready(self, timeout_s: float) -> WorkerStatus:
        """Wait until the worker holds a lease.

        Raises:
            WorkerStartError: it ended, or was not ready in time; the message has the last line of its log.
        """
        store = JobStore(FleetSettings(redis_url=self.redis_url))
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                for worker in store.workers():
                    if worker.pid == self.pid:
                        return worker
                if self.exit_status is not None or time.monotonic() > deadline:
                    raise WorkerStartError(f"The worker is not ready: {self.log_tail()}")
                time.sleep(_READY_POLL_S)
        finally:
            store.close_connections()


class LocalStack:
    """A Redis server and workers of one model.

    Args:
        home: the directory for data and logs.
        worker_arguments: the command-line arguments of each worker, as for ``pagefleet worker``.
        redis_url: a Redis server to use. None: start one.
        metrics_port: the metrics port of the first worker; the others use the next ports. 0: free ports.
        quiet: workers write to log files in ``home`` instead of the terminal.
        drain_s: time that running jobs have to finish when the stack stops, in seconds.
        guard: stops the stack if this process is killed.
        ready_timeout_s: time that the workers have to become ready, in seconds.
    """

    def __init__(
        self,
        home: Path,
        worker_arguments: Sequence[str],
        *,
        num_workers: int = 1,
        redis_url: str | None = None,
        metrics_port: int | None = None,
        quiet: bool = True,
        drain_s: float = 20.0,
        guard: StackGuard | None = None,
        ready_timeout_s: float = 300.0,
    ) -> None:
        self.home = home
        self._ready_timeout_s = ready_timeout_s
        self._guard = guard
        self.endpoint = None if redis_url else ServerEndpoint.kept_in(home)
        self.server = None
        if self.endpoint is not None:
            self.server = RedisServer(home / "redis", self.endpoint.port, password=self.endpoint.password)
        self.redis_url = redis_url or (self.server.url if self.server is not None else "")
        self._drain_s = drain_s
        arguments = [*worker_arguments, "--drain-seconds", str(drain_s)]
        if num_workers > 1:
            # Workers share the cores. An option given by the user comes later and overrides this one.
            share = max(1, (os.cpu_count() or 1) // num_workers)
            arguments = ["--num-threads", str(share), *arguments]
        self.workers = [
            WorkerProcess(
                self.redis_url,
                [*arguments, *_metrics_option(metrics_port, index)],
                log_file=self._log_file(index) if quiet else None,
            )
            for index in range(num_workers)
        ]
        self.companions: list[ChildProcess] = []
        """Further processes that start and stop with the workers."""

    @property
    def children(self) -> list[ChildProcess]:
        """All processes except the server."""
        return [*self.workers, *self.companions]

    def start(self) -> Self:
        """Start everything and wait until the workers are ready. Raises: WorkerStartError."""
        try:
            if self.endpoint is not None and self.server is not None:
                self.endpoint.check_free()
                # Watch it before it has loaded its data, which can take a while.
                self.server.spawn()
                self.watch()
                self.server.wait_ready()
            for child in self.children:
                child.start()
                self.watch()
            for worker in self.workers:
                worker.wait_ready(self._ready_timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def watch(self) -> None:
        """Report the running processes to the guard."""
        if self._guard is not None:
            pids = [child.pid for child in self.children if child.is_started and child.exit_status is None]
            self._guard.watch(pids, None if self.server is None else self.server.pid)

    def stop(self) -> None:
        """Drain the workers, then stop the server, so that no running job is lost."""
        started = [child for child in self.children if child.exit_status is None and child.is_started]
        for child in started:
            child.terminate()
        for child in started:
            child.wait(self._drain_s + _KILL_AFTER_S)
        if self.server is not None:
            self.server.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write_stack_file(self, path: Path) -> None:
        """Write the file in which clients and commands on this machine look up the URL of Redis."""
        replace_secret(path, json.dumps({"redis_url": self.redis_url, "pid": os.getpid()}))

    def _log_file(self, index: int) -> Path:
        return self.home / f"worker-{index}.log"


def _metrics_option(first_port: int | None, index: int) -> list[str]:
    if first_port is None:
        return []
    return ["--metrics-port", str(first_port + index if first_port else 0)]
