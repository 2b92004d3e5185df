"""A worker that loses one of its threads exits, because it would hang otherwise."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from pagefleet.workers.threads.loop_thread import CRASH_EXIT_STATUS, LoopThread

CRASHING = """
import logging, time
from pagefleet.workers.threads.loop_thread import LoopThread
logging.basicConfig()
LoopThread("finisher", lambda: 1 / 0).start()
time.sleep(90)
"""


def test_an_unexpected_error_in_a_thread_ends_the_process_and_says_why():
    done = subprocess.run([sys.executable, "-c", CRASHING], capture_output=True, text=True, timeout=60)
    assert done.returncode == CRASH_EXIT_STATUS
    assert "thread pagefleet-finisher failed" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_the_system_knows_the_name_of_a_thread():
    names = []
    read = Path("/proc/thread-self/comm").read_text
    thread = LoopThread("a-rather-long-name", lambda: names.extend([read(), threading.current_thread().name]))
    thread.start()
    thread.join(60)
    assert names == ["a-rather-long-n\n", "pagefleet-a-rather-long-name"]


def test_a_loop_that_returns_ends_quietly():
    thread = LoopThread("short", lambda: None)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
