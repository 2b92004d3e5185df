"""Redis restarts empty while streams run: own jobs start again, attached readers get an error."""

from __future__ import annotations

import shutil
import threading

import pytest

from pagefleet.api import FleetClient, FleetError, JobLost
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.threads.polling import wait_until

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02", "--lease-seconds", "1"]
NUM_STREAMS, NUM_TOKENS, BAR_S = 8, 200, 60.0


@pytest.fixture
def stack(server_binary, tmp_path):
    with LocalStack(tmp_path, NULL, drain_s=0.0) as stack:
        yield stack


class Reader(threading.Thread):
    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream = stream
        self.token_ids = []
        self.error = None

    def run(self):
        try:
            for chunk in self.stream:
                assert chunk.offset == len(self.token_ids)
                self.token_ids += chunk.token_ids
        except FleetError as error:
            self.error = error


def test_every_token_once_although_the_server_forgot_all(stack):
    with FleetClient(redis_url=stack.redis_url) as fleet, FleetClient(redis_url=stack.redis_url) as other:
        (worker,) = fleet.status().workers
        owners = [
            Reader(fleet.generate("x", max_tokens=NUM_TOKENS, seed=seed)) for seed in range(NUM_STREAMS)
        ]
        foreign = fleet.generate("x", max_tokens=4000, seed=99, detached=True)
        next(foreign)
        foreign.close()
        attached = Reader(other.attach(foreign.job_id))
        readers = [*owners, attached]
        for reader in readers:
            reader.start()
        assert wait_until(lambda: all(len(reader.token_ids) > 10 for reader in readers), 60)
        # When the server is killed and restarts without its data.
        stack.server.kill()
        shutil.rmtree(stack.server.data_dir)
        stack.server.start()
        for reader in readers:
            reader.join(BAR_S)
            assert not reader.is_alive()
        # Then own streams have each token once, and readers of other clients' jobs get an error.
        for seed, reader in enumerate(owners):
            assert reader.error is None
            assert reader.token_ids == [null_token(seed, 0, position) for position in range(NUM_TOKENS)]
        assert isinstance(attached.error, JobLost)
        # And the same worker continues, its card is published again, and no job stays open.
        assert [card.name for card in fleet.models()] == ["null"]
        assert len(fleet.generate("x", max_tokens=3).result().token_ids) == 3
        assert [each.worker_id for each in fleet.status().workers] == [worker.worker_id]
        assert wait_until(lambda: all(queue.num_open == 0 for queue in fleet.status().queues), 60)
        assert stack.workers[0].exit_status is None
