"""StackGuard: stop the processes of ``pagefleet up`` if it is killed with SIGKILL.

The guard is a process that reads a pipe from ``up``. When the pipe closes, it does what ``up`` would have
done: it drains the workers, then stops the server. Without it, a killed stack would keep running, and the
next one would start a second server on the same data.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final, Self

import psutil

_SERVER_STOP_S: Final = 10.0
_KILL_AFTER_S: Final = 15.0


class StackGuard:
    """The guard process.

    Args:
        drain_s: time that workers have to drain, in seconds.
    """

    def __init__(self, drain_s: float) -> None:
        # -P: do not import modules from the current directory.
        command = [
            sys.executable,
            "-P",
            "-m",
            "pagefleet.workers.local.stack_guard",
            str(drain_s + _KILL_AFTER_S),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, children: Sequence[int], server: int | None) -> None:
        """Replace the watched process ids. The guard stops ``server`` after the children have ended."""
        line = json.dumps({"children": list(children), "server": server})
        assert self._process.stdin is not None
        # If the guard was killed, the stack continues without it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the guard; the processes have ended."""
        self.watch([], None)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def _guard(stop_s: float) -> None:
    children: list[psutil.Process] = []
    server: list[psutil.Process] = []
    for line in sys.stdin:
        # Look them up now: psutil.Process knows its start time, so a reused id is not mistaken for it.
        watched = json.loads(line)
        children = _find(watched["children"])
        server = _find([watched["server"]])
    _end(children, stop_s)
    _end(server, _SERVER_STOP_S)


def _find(pids: Sequence[int | None]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        try:
            found += [] if pid is None else [psutil.Process(pid)]
        except psutil.NoSuchProcess:
            continue
    return found


def _end(processes: list[psutil.Process], stop_s: float) -> None:
    for process in processes:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=stop_s)
    for process in alive:
        _signal(process.kill)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


if __name__ == "__main__":
    _guard(float(sys.argv[1]))
