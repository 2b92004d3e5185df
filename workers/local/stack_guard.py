"""StackGuard: what ``pagefleet up`` started ends with it, also when it is killed and can end nothing itself.

A process that outlives ``up`` reads a pipe from it. At the pipe's end it does what ``up`` would have done:
the workers drain, then the server stops. Without it a killed stack would go on unseen, and the next one would
open a second server on the same data.
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
    """Watches over processes by their ids.

    Args:
        drain_s: what workers get to finish.
    """

    def __init__(self, drain_s: float) -> None:
        # -P: the current folder is nobody's to import from.
        command = [
            sys.executable,
            "-P",
            "-m",
            "pagefleet.workers.local.stack_guard",
            str(drain_s + _KILL_AFTER_S),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def watch(self, children: Sequence[int], server: int | None) -> None:
        """From now on these, in place of those before: ``server`` is stopped when the children are gone."""
        line = json.dumps({"children": list(children), "server": server})
        assert self._process.stdin is not None
        # Where somebody has ended the guard the stack runs on without.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """All has ended: there is nothing left to guard."""
        self.watch([], None)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def _guard(stop_s: float) -> None:
    children: list[psutil.Process] = []
    server: list[psutil.Process] = []
    for line in sys.stdin:
        # Looked up now: a process knows when it began, so that a later one with its number is another.
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
