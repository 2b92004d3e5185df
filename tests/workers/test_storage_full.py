"""Redis at its memory limit: no new job is taken, no running job is lost. Real server, real worker."""

from __future__ import annotations

import signal

import pytest
import redis

from pagefleet.api import FleetClient
from pagefleet.api.broker.celery_app import make_celery, make_queue
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import StorageFull
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import LocalStack
from pagefleet.workers.queue.unacked import UnackedMessages
from pagefleet.workers.threads.polling import wait_until

pytestmark = pytest.mark.alone

NULL = ["--model", "null", "--backend", "null", "--null-step-time", "0.02", "--lease-seconds", "2"]
NUM_STREAMS, NUM_TOKENS = 8, 200


@pytest.fixture
def stack(server_binary, tmp_path):
    with LocalStack(tmp_path, NULL, drain_s=0.0) as stack:
        yield stack


@pytest.fixture
def raw(stack):
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as client:
        yield client
        client.config_set("maxmemory", 0)


def test_running_jobs_wait_for_room_and_end_exactly(stack, raw):
    with FleetClient(redis_url=stack.redis_url) as fleet:
        (worker,) = fleet.status().workers
        streams = [fleet.generate("x", max_tokens=NUM_TOKENS, seed=seed) for seed in range(NUM_STREAMS)]
        for stream in streams:
            next(stream)
        # Given a full server with two waiting messages.
        stack.workers[0].send_signal(signal.SIGSTOP)
        waiting = [fleet.generate("x", max_tokens=5, seed=100 + index) for index in range(2)]
        stack.workers[0].send_signal(signal.SIGCONT)
        raw.config_set("maxmemory", 1)
        with pytest.raises(StorageFull, match="at its memory limit"):
            fleet.generate("x")
        # When it stays full for more than two lease times.
        before = raw.info("commandstats").get("cmdstat_brpop", {"calls": 0})["calls"]
        lease_lost = wait_until(lambda: not raw.exists(keys.lease(worker.worker_id)), 5.0)
        # Then the worker keeps its lease, and does not poll in a tight loop.
        assert not lease_lost
        assert raw.info("commandstats").get("cmdstat_brpop", {"calls": 0})["calls"] - before < 50
        raw.config_set("maxmemory", 0)
        # And when the server has room again, all jobs continue exactly.
        for seed, stream in [*enumerate(streams), *((100 + i, each) for i, each in enumerate(waiting))]:
            tokens = stream.result().token_ids
            assert tokens == [null_token(seed, 0, position) for position in range(len(tokens))]
            assert len(tokens) == (NUM_TOKENS if seed < 100 else 5)
        assert wait_until(lambda: all(queue.num_open == 0 for queue in fleet.status().queues), 60)
        assert stack.workers[0].exit_status is None
        assert [each.worker_id for each in fleet.status().workers] == [worker.worker_id]
        assert fleet.status().workers[0].num_bad_messages == 0


def test_a_message_popped_in_the_last_moment_does_not_end_the_worker(store):
    """kombu cannot store it as unacknowledged. Celery's consumer would end with an unrecoverable error."""
    app = make_celery(store.settings, worker_id="w")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        UnackedMessages(channel, lambda: None).guard()
        queue = make_queue("pagefleet.null.interactive")(channel)
        queue.declare()
        delivered = []
        queue.consume("tag", delivered.append, no_ack=False)
        send_message(app, "job", "pagefleet.null.interactive", 5)
        channel.client.connection = channel.client.connection_pool.get_connection()
        channel._brpop_start()
        store.redis.config_set("maxmemory", 1)
        try:
            channel._brpop_read()
        finally:
            store.redis.config_set("maxmemory", 0)
        (message,) = delivered
        assert message.headers["id"] == "job"
        message.ack()
    app.close()
