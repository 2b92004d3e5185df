"""Different workers: another version continues a job and records it, other weights do not take it."""

from __future__ import annotations

import json
import signal
import time
import uuid

import pytest
from step_items import StepItem, step_batch

from pagefleet.api import FleetClient, JobDead, JobState
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.sending import send_message
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import LogEntry, WorkerStatus
from pagefleet.api.contract.requests import build_request
from pagefleet.api.operate.dead_letters import DeadLetters
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.local.local_stack import WorkerProcess
from pagefleet.workers.local.redis_server import RedisServer
from pagefleet.workers.threads.polling import wait_until

WORKER = ["--model", "null", "--backend", "null", "--null-step-time", "0.02", "--lease-seconds", "1"]
WORKER += ["--drain-seconds", "0"]
NUM_TOKENS = 300
# The first worker of a test must still run its jobs when the second one is ready, which takes seconds.
SLOW_STEPS = ["--null-step-time", "0.2"]


@pytest.fixture
def start(server_binary, tmp_path):
    """Starts workers with given fingerprints on one server, ``start.url``."""
    started = []
    with RedisServer(tmp_path / "redis") as server:

        def start_worker(*arguments):
            log_file = tmp_path / f"worker-{len(started)}.log"
            worker = WorkerProcess(server.url, [*WORKER, *arguments], log_file=log_file).start()
            started.append(worker)
            worker.wait_ready(60)
            return worker

        start_worker.url = server.url
        yield start_worker
        for worker in started:
            if worker.exit_status is None:
                worker.terminate()
                worker.wait(60)


def tokens(seed):
    return [null_token(seed, 0, at) for at in range(NUM_TOKENS)]


def test_a_rolling_upgrade_with_jobs_in_flight(start):
    old = start("--null-version", "0.0.9", *SLOW_STEPS)
    with FleetClient(redis_url=start.url) as fleet:
        streams = [fleet.generate("x", max_tokens=NUM_TOKENS, seed=seed) for seed in range(8)]
        for stream in streams:
            next(stream)
        start("--null-version", "0.1.0")
        old.terminate()
        assert old.wait(60) == 0
        for seed, stream in enumerate(streams):
            stream.result()
            result = fleet.attach(stream.job_id).result()
            assert result.token_ids == tokens(seed)
            record = fleet._live.store.read(stream.job_id)
            assert [each.version for each in record.result().fingerprints] == ["0.0.9", "0.1.0"]


OLD_QUEUES = {"interactive": "org_2f_4eull.interactive", "batch": "org_2f_4eull.batch"}


def write_as_before(store, queue, seed, priority="5", **fields):
    """A job as the previous version stored it, without the newer fields and queue names."""
    job_id = str(uuid.uuid4())
    request = {"model": "org/Null", "prompt": "hi", "sampling": {"max_tokens": NUM_TOKENS, "seed": seed}}
    store.redis.hset(
        f"pf:job:{job_id}",
        mapping={
            "state": "Q", "epoch": "0", "attempts": "0", "num_ended": "0", "enqueued_at": "1",
            "request": json.dumps(request), "queue": queue, "priority": priority, "channel": "",
            "num_choices": "1", **fields,
        },
    )  # fmt: skip
    store.redis.zadd(f"pf:open:{queue}", {job_id: 1})
    if fields.get("tenant_ledger"):
        store.redis.zadd(fields["tenant_ledger"], {job_id: 1})
    return job_id


def test_an_old_producers_jobs_are_served(start):
    """Nothing of the previous version is lost: its queues, its ledgers, and messages without a job."""
    start("--served-name", "org/Null")
    app = make_celery(FleetSettings(redis_url=start.url))
    with FleetClient(redis_url=start.url) as fleet:
        store = fleet._live.store
        ledger = f"pf:tenant:{OLD_QUEUES['interactive']}:acme"
        written = {
            1: write_as_before(
                store, OLD_QUEUES["interactive"], 1, tenant="acme", tenant_ledger=ledger, clients=""
            ),
            2: write_as_before(store, OLD_QUEUES["batch"], 2, priority="2"),
            3: write_as_before(store, OLD_QUEUES["interactive"], 3),
        }
        (queue,) = [each for each in fleet.status().queues if each.lane == "interactive"]
        assert (queue.name, queue.num_open) == ("pagefleet.org%2FNull.interactive", 2)
        send_message(app, written[1], OLD_QUEUES["interactive"], 5)
        send_message(app, written[2], OLD_QUEUES["batch"], 2)
        # The message of the third job is lost, and the fourth is only a message.
        fields = {"model": "org/Null", "prompt": "hi", "max_tokens": NUM_TOKENS, "seed": 4}
        sent = app.send_task("pagefleet.generate", kwargs=fields, queue=OLD_QUEUES["interactive"])
        assert sent.get(timeout=30)["choices"][0]["token_ids"] == tokens(4)
        for seed, job_id in written.items():
            assert fleet.attach(job_id).result().token_ids == tokens(seed)
            assert wait_until(lambda job_id=job_id: store.redis.ttl(f"pf:job:{job_id}") > 0, 60)
        assert not store.redis.keys("pf:open:*") + store.redis.keys("pf:tenant:*")
    app.close()


def test_other_weights_wait_for_their_own_kind(start):
    first = start("--null-weights", "one", *SLOW_STEPS)
    with FleetClient(redis_url=start.url) as fleet:
        stream = fleet.generate("x", max_tokens=NUM_TOKENS, seed=5)
        next(stream)
        start("--null-weights", "two")
        first.send_signal(signal.SIGKILL)
        assert wait_until(lambda: fleet.status().refused, 60)
        (refused,) = fleet.status().refused
        assert refused.job_id == stream.job_id
        assert "other weights" in refused.reason
        # A job without tokens may start on any worker: the second one does not wait for the first one's job.
        assert fleet.generate("y", max_tokens=4, seed=6).result().token_ids == tokens(6)[:4]
        start("--null-weights", "one")
        assert stream.result().token_ids == tokens(5)
        assert fleet.status().refused == []


NUM_REFUSED = 200
ON_FOUR_SEATS = ["--max-num-seqs", "4", "--null-step-time", "0.005"]


def begin_elsewhere(store, app, fingerprint, seed):
    """A job with one token from other weights, and its message."""
    job_id, queue = str(uuid.uuid4()), keys.queue("null", "interactive")
    request = build_request({"model": "null", "prompt": "x", "seed": seed, "max_tokens": 8, "detached": True})
    store.submit(job_id, request, queue=queue, channel="", limits=Limits(1000, 1000))
    store.beat(WorkerStatus(worker_id="old", model="null", host="h", pid=1, started_at=0.0), 60)
    store.claim([job_id], "old", fingerprint.model_dump_json())
    entry = LogEntry(offset=0, token_ids=tokens(seed)[:1], texts=[""])
    store.step("old", step_batch([StepItem(job_id, 1, 0, 0, entry, 1)]))
    store.release(job_id, "old", 1)
    send_message(app, job_id, queue, request.priority)
    return job_id


def test_hundreds_of_refused_jobs_hold_no_seat_and_wait_for_their_weights(start):
    """After an upgrade of the weights, new jobs run as if the old ones did not exist."""
    worker = start("--null-weights", "two", *ON_FOUR_SEATS)
    with FleetClient(redis_url=start.url) as fleet:
        store = fleet._live.store
        (card,) = store.cards()
        app = make_celery(FleetSettings(redis_url=start.url))
        own = card.fingerprint.model_copy(update={"weights": "one"})
        old = {begin_elsewhere(store, app, own, seed): seed for seed in range(NUM_REFUSED)}
        store.redis.delete(keys.lease("old"))

        begun_at = time.monotonic()
        streams = [fleet.generate("y", max_tokens=50, seed=1) for _ in range(8)]
        for stream in streams:
            assert stream.result().token_ids == tokens(1)[:50]
        # When a refused job took one of four places for a second, the 200 jobs took 50 s.
        assert time.monotonic() - begun_at < 25

        hashes = [keys.job(job_id) for job_id in old]
        assert wait_until(lambda: all(int(store.redis.hget(name, "backoff")) >= 4000 for name in hashes), 60)
        asked = sum("is not taken" in line for line in worker.read_log())
        # Four times until the backoff is 4 s. On a slow machine the first ones are asked a fifth time before
        # the last one has it.
        assert asked <= 5 * NUM_REFUSED

        # Two of them have waited too long and are dead letters. One is requeued and continues.
        given_up = list(old)[:2]
        for job_id in given_up:
            store.redis.hset(keys.job(job_id), "refused_until", "1")
        assert wait_until(lambda: set(store.dead_letters()) == set(given_up), 60)
        assert store.read(given_up[0]).state is JobState.DEAD
        with pytest.raises(JobDead, match="begun with other weights"):
            fleet.attach(given_up[1]).result()
        new_id = DeadLetters(store, app, JobCloser(store, app)).requeue(given_up[0])
        seeds = {new_id: old[given_up[0]], **{job_id: old[job_id] for job_id in list(old)[2:]}}

        worker.terminate()
        assert worker.wait(60) == 0
        start("--null-weights", "one", *ON_FOUR_SEATS)
        for job_id, seed in seeds.items():
            assert fleet.attach(job_id).result().token_ids == tokens(seed)[:8]
            assert {each.weights for each in store.read(job_id).fingerprints} == {"one"}
        app.close()
