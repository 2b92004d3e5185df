"""Fixtures of the workers' tests. ``tests/conftest.py`` has the servers and stacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from pagefleet.workers.threads.polling import wait_until

TESTS = Path(__file__).parents[1]
FOREIGN_QUEUE = "their-tasks"
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def service(null_stack):
    """A producer's Celery app on the same Redis, without the pagefleet package."""
    app = Celery("their-service", broker=null_stack.redis_url, backend=null_stack.redis_url)
    yield app
    # Celery does not close its subscription to results.
    app.backend.result_consumer.stop()
    app.backend.result_consumer._pubsub = None
    app.backend.client.connection_pool.disconnect()
    app.close()


@pytest.fixture(scope="session")
def foreign_worker(null_stack, tmp_path_factory):
    """The log file of a plain Celery worker of ``tests/foreign_app.py`` on the stack's Redis.

    It consumes a separate queue, because it runs until the end of the session and other tests start workers
    of the same app.
    """
    log = tmp_path_factory.mktemp("foreign") / "worker.log"
    command = [
        "worker",
        "--pool",
        "solo",
        "--without-gossip",
        "--without-mingle",
        "--hostname",
        "foreign@here",
    ]
    command += ["--loglevel", "INFO", "--queues", FOREIGN_QUEUE]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "--app", "foreign_app", *command],
            env={**os.environ, "FOREIGN_URL": null_stack.redis_url, "PYTHONPATH": str(TESTS)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        assert wait_until(lambda: "foreign@here ready" in log.read_text(), 60), log.read_text()
        yield log
    finally:
        process.terminate()
        process.wait(60)
