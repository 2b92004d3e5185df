"""A failed step fails no other job: a bad job fails alone, and a lost device ends the process but no job."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagefleet.api import FleetClient, JobDead, JobFailed
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.threads.loop_thread import CRASH_EXIT_STATUS
from pagefleet.workers.threads.polling import wait_until

WORKER = ["--model", "null", "--backend", "null", "--null-step-time", "0.01", "--lease-seconds", "1"]
NUM_TOKENS = 200


class Fleet:
    """Workers, started one by one, whose device fails when a prompt asks for it."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self._redis_url, self._folder = redis_url, folder
        self.workers: list[WorkerProcess] = []

    def start_worker(self, *arguments: str) -> WorkerProcess:
        worker = WorkerProcess(
            self._redis_url,
            [*WORKER, *arguments],
            log_file=self._folder / f"worker-{len(self.workers)}.log",
            environment={"PAGEFLEET_NULL_FAULTS": "true", "OMP_WAIT_POLICY": "passive"},
        )
        worker.start()
        self.workers.append(worker)
        worker.wait_ready(60)
        return worker

    def log(self, number: int) -> str:
        return (self._folder / f"worker-{number}.log").read_text()

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)


@pytest.fixture(scope="module")
def redis_url(server_binary, tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def fleet(redis_url, tmp_path):
    fleet = Fleet(redis_url, tmp_path)
    yield fleet
    fleet.stop()


@pytest.fixture
def client(redis_url):
    with FleetClient(redis_url=redis_url) as client:
        yield client


def whole(seed):
    return [null_token(seed, 0, at) for at in range(NUM_TOKENS)]


def test_one_of_forty_fails_and_a_lost_device_fails_none(fleet, client, redis_url):
    store = JobStore(FleetSettings(redis_url=redis_url))
    first = fleet.start_worker("--max-num-seqs", "48")
    # Given forty jobs, one of which makes each of its steps fail
    good = [client.generate("good", max_tokens=NUM_TOKENS, seed=index) for index in range(20)]
    bad = client.generate("<fault step>", max_tokens=NUM_TOKENS)
    good += [client.generate("good", max_tokens=NUM_TOKENS, seed=index) for index in range(20, 39)]
    # Then only this job fails
    with pytest.raises(JobFailed, match="cannot compute this sequence"):
        bad.result()
    for seed, stream in enumerate(good):
        result = stream.result()
        assert (result.token_ids, result.attempts) == (whole(seed), 1)

    # When a starting job breaks the device while twelve jobs are running
    good = [client.generate("good", max_tokens=NUM_TOKENS, seed=index) for index in range(12)]
    for stream in good:
        next(stream)
    poison = client.generate("<fault device>", job_id="poison")
    assert wait_until(lambda: first.exit_status is not None, 60)
    # Then the worker exits with the reason, and no job has ended
    assert first.exit_status == CRASH_EXIT_STATUS
    assert "its jobs return to their queues: The device is lost" in fleet.log(0)
    assert {store.read(stream.job_id).fields["state"] for stream in good} <= {"Q", "R"}
    assert store.read("poison").fields.get("suspect") == "1"
    # And other workers continue them exactly and without blame; the suspect is given up after three workers
    while store.read("poison").fields["state"] in "QR":
        worker = fleet.start_worker("--max-num-seqs", "48")
        assert wait_until(
            lambda worker=worker: (
                worker.exit_status is not None or store.read("poison").fields["state"] not in "QR"
            ),
            60,
        )
    with pytest.raises(JobDead, match="3 workers died while they began this job"):
        poison.result()
    for seed, stream in enumerate(good):
        assert stream.result().token_ids == whole(seed)
        fields = store.read(stream.job_id).fields
        assert (fields.get("blame", "0"), fields.get("solo", "0")) == ("0", "0")
    assert len(fleet.workers) == 4
    store.close_connections()
