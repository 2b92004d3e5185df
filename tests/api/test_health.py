"""``pagefleet health``: what a container's health check asks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pagefleet.api.cli.main import main
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--lease-seconds", "0.5", "--drain-seconds", "0"]


def health(url, *arguments):
    return CliRunner().invoke(main, ["health", "--redis-url", url, *map(str, arguments)])


@pytest.fixture
def worker(redis_server, store, tmp_path):
    """A worker of its own on a server that is empty otherwise, in a process that may be stopped."""
    process = WorkerProcess(redis_server.url, NULL, log_file=tmp_path / "worker.log").start()
    try:
        process.wait_ready(60)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(60)


def test_a_worker_that_serves_is_healthy_and_a_stuck_one_is_not(redis_server, worker):
    done = health(redis_server.url)
    assert done.exit_code == 0
    assert "serves null: 0 running" in done.output
    # Its process lives on, its engine does not turn.
    worker.send_signal(signal.SIGSTOP)
    assert wait_until(lambda: health(redis_server.url).exit_code == 1, 60)
    assert worker.exit_status is None
    assert health(redis_server.url).output.startswith(f"Error: No worker on {socket.gethostname()} ")
    worker.send_signal(signal.SIGCONT)
    assert wait_until(lambda: health(redis_server.url).exit_code == 0, 60)


def test_one_of_several_is_asked_for_by_pid_or_host(redis_server, worker):
    assert health(redis_server.url, "--pid", worker.pid).exit_code == 0
    assert health(redis_server.url, "--pid", os.getpid()).exit_code == 1
    assert health(redis_server.url, "--host", "another").exit_code == 1


def test_a_server_that_is_away_is_one_sentence():
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "health"]
    command += ["--redis-url", "redis://127.0.0.1:1/0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "No answer from Redis" in done.stderr
    assert "Traceback" not in done.stderr
