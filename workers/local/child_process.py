"""ChildProcess: run a ``pagefleet`` command as a child of this process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self


class ChildProcess:
    """The process ``pagefleet <arguments>``, in its own session so that Ctrl-C does not reach it twice.

    Args:
        kind: what to call the process in messages: worker, gateway, flower.
        environment: all of its environment variables.
        log_file: where to append its output. None: the output of this process.
    """

    def __init__(
        self,
        kind: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_file: Path | None = None,
    ) -> None:
        self.kind = kind
        self.log_file = log_file
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"the {self.kind} was not started"
        return self._process.pid

    @property
    def is_started(self) -> bool:
        return self._process is not None

    @property
    def exit_status(self) -> int | None:
        """The exit status; None while the process runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> Self:
        command = [sys.executable, "-m", "pagefleet.api.cli.main", *self._arguments]
        log: IO[Any] | None = None
        if self.log_file is not None:
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            log = self.log_file.open("ab")
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=log, stderr=log, start_new_session=True
        )
        if log is not None:
            log.close()
        return self

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for the exit status; kill the process after the timeout."""
        assert self._process is not None, f"the {self.kind} was not started"
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def read_log(self) -> list[str]:
        """Return the lines of the log file so far."""
        assert self.log_file is not None, f"this {self.kind} writes to the terminal"
        return self.log_file.read_text(errors="replace").strip().splitlines()

    def log_tail(self) -> str:
        if self.log_file is None:
            return f"exit status {self.exit_status}"
        lines = self.read_log()
        return lines[-1] if lines else "its log is empty"
