"""Ends what a killed test run leaves behind: workers, servers and gateways are in sessions of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil

RUN = "TESTS_OF_PID"
"""The variable that every descendant of a test process has, with that process's id and its start."""


@contextlib.contextmanager
def reaper() -> Iterator[None]:
    """However this process ends, its descendants end too.

    A process outside of this one's session reads a pipe from it, and at the pipe's end kills every process
    that has inherited the variable.
    """
    run = f"{os.getpid()}-{psutil.Process().create_time()}"
    os.environ[RUN] = run
    without = {name: value for name, value in os.environ.items() if name != RUN}
    process = subprocess.Popen(
        [sys.executable, __file__, run], stdin=subprocess.PIPE, env=without, start_new_session=True
    )
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def kill_descendants(run: str) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(RUN) == run:
                process.kill()


if __name__ == "__main__":
    sys.stdin.read()
    kill_descendants(sys.argv[1])
