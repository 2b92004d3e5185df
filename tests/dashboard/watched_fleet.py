"""One worker without a model on a guarded server, and Flower as the user that may only watch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from flower_page import FlowerPage, running_flower
from guarded_server import GuardedServer

from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.threads.polling import wait_until

STEP_S = 0.1
NUM_SEATS = 36
NUM_BLOCKS = 2048
_WORKER = ["--model", "null", "--backend", "null", "--null-step-time", str(STEP_S), "--drain-seconds", "0"]
_WORKER += ["--max-num-seqs", str(NUM_SEATS), "--num-blocks", str(NUM_BLOCKS)]


@dataclass
class WatchedFleet:
    guarded: GuardedServer
    page: FlowerPage
    worker_id: str

    @property
    def worker_name(self):
        """As Celery and Flower call it."""
        return f"null@{self.worker_id}"


@contextlib.contextmanager
def watched_fleet(folder):
    with GuardedServer(folder / "redis") as guarded:
        worker = WorkerProcess(guarded.url_of("worker"), _WORKER, log_file=folder / "worker.log").start()
        try:
            status = worker.wait_ready(60)
            guarded.forget_denied()
            with running_flower(guarded.url_of("monitor"), folder) as page:
                # It hears of what happens after it has come.
                assert wait_until(lambda: "active_queues" in page.get("/api/workers?refresh=true"), 60, 0.2)
                yield WatchedFleet(guarded, page, status.worker_id)
        finally:
            worker.terminate()
            worker.wait(60)
