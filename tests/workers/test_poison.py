"""A job that kills its workers is given up after three deaths. Other jobs are not blamed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pagefleet.api import FleetClient, JobDead
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.local.redis_server import RedisServer

WORKER = ["--model", "null", "--backend", "null", "--null-step-time", "0.01", "--lease-seconds", "1"]
NUM_BYSTANDERS = 12
NUM_TOKENS = 300


class Supervisor(threading.Thread):
    """Restarts dead workers, like systemd or Kubernetes."""

    def __init__(self, workers):
        super().__init__()
        self.workers = workers
        self.num_deaths = 0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(0.05):
            for worker in self.workers:
                if worker.exit_status is not None:
                    self.num_deaths += 1
                    worker.start()


@pytest.fixture
def redis_url(server_binary, tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def supervisor(redis_url, tmp_path):
    environment = {"PYTHONPATH": str(Path(__file__).parent / "poison"), "OMP_WAIT_POLICY": "passive"}
    workers = [
        WorkerProcess(redis_url, WORKER, log_file=tmp_path / f"worker-{index}.log", environment=environment)
        for index in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.wait_ready(60)
    supervisor = Supervisor(workers)
    supervisor.start()
    yield supervisor
    supervisor.stopping.set()
    supervisor.join()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(60)


def test_three_deaths_and_a_dead_letter(supervisor, redis_url):
    store = JobStore(FleetSettings(redis_url=redis_url))
    with FleetClient(redis_url=redis_url) as fleet:
        bystanders = [
            fleet.generate(f"good {index}", max_tokens=NUM_TOKENS, seed=index, job_id=f"good-{index}")
            for index in range(NUM_BYSTANDERS // 2)
        ]
        poison = fleet.generate("poison", job_id="poison")
        # Some of these are likely to be in their first prefill at the same time.
        bystanders += [
            fleet.generate(f"good {index}", max_tokens=NUM_TOKENS, seed=index, job_id=f"good-{index}")
            for index in range(NUM_BYSTANDERS // 2, NUM_BYSTANDERS)
        ]
        with pytest.raises(JobDead, match="given up: 3 workers died while they began this job"):
            poison.result()
        for index, stream in enumerate(bystanders):
            assert stream.result().token_ids == [null_token(index, 0, at) for at in range(NUM_TOKENS)]
    assert 3 <= supervisor.num_deaths <= 5
    assert store.dead_letters() == ["poison"]
    blame = {stream.job_id: store.read(stream.job_id).fields.get("blame", "0") for stream in bystanders}
    assert set(blame.values()) == {"0"}
    store.close_connections()


def test_the_environment_of_this_test_is_not_poisoned():
    assert "poison" not in os.environ.get("PYTHONPATH", "")
