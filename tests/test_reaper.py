"""A killed run of tests leaves no process behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

RUN = """
import subprocess, time
from reaper import reaper

with reaper():
    # As a fleet's processes are: in a session of its own, with a child of its own.
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], start_new_session=True)
    time.sleep(1000)
"""


def test_a_killed_run_leaves_no_process_behind():
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        sleeper = psutil.Process(int(run.stdout.readline()))
        descendants = [sleeper, *psutil.Process(run.pid).children(recursive=True)]
        run.kill()
        _, alive = psutil.wait_procs(descendants, timeout=20)
        assert alive == []
