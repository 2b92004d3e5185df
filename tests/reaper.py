"""End the processes of a killed test run: workers, servers and gateways run in separate sessions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil

RUN = "TESTS_OF_PID"
"""The environment variable of all descendants of a test process: its process id and start time."""


@contextlib.contextmanager
def reaper() -> Iterator[None]:
    """End all descendants of this process when it ends, for any reason.

    A helper process in another session reads a pipe from this one. When the pipe closes, the helper kills all
    processes that have inherited the variable.
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
