"""Jobs without a message and a worker are sent again; others are not."""

from __future__ import annotations

import pytest

from pagefleet.api import FleetClient
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.sending import send_message
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState, WorkerStatus
from pagefleet.api.contract.requests import build_request
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.workers.recovery.sweeper import Sweeper
from pagefleet.workers.threads.polling import wait_until

QUEUE = "pagefleet.null.interactive"


@pytest.fixture
def app(store):
    app = make_celery(store.settings)
    yield app
    app.close()


@pytest.fixture
def sweeper(store, app):
    """A sweeper without a grace period: a stranded job is sent at once."""
    return Sweeper(store, app, [QUEUE], grace_s=0.0)


def submit(store, job_id, priority=5):
    request = build_request({"model": "null", "prompt": "x", "seed": 1, "priority": priority})
    assert store.submit(job_id, request, queue=QUEUE, channel="", limits=Limits(100, 10**6)).created


def beat(store, worker_id, lease_s=60.0):
    store.beat(WorkerStatus(worker_id=worker_id, model="null", host="h", pid=1, started_at=0.0), lease_s)


def test_a_producer_that_died_before_it_sent(store, sweeper):
    submit(store, "a")
    assert sweeper.sweep() == 1
    assert num_queued(store, QUEUE) == 1


def test_a_job_that_waits_in_its_queue_is_left_alone(store, app, sweeper):
    submit(store, "a")
    send_message(app, "a", QUEUE, 5)
    assert sweeper.sweep() == 0


def test_a_job_that_a_live_worker_runs_is_left_alone(store, sweeper):
    beat(store, "w1")
    submit(store, "a")
    store.claim(["a"], "w1", "{}")
    assert sweeper.sweep() == 0


def test_a_job_whose_worker_died_without_a_message_left(store, sweeper):
    beat(store, "w1")
    submit(store, "a")
    store.claim(["a"], "w1", "{}")
    store.delete_lease("w1")
    assert sweeper.sweep() == 1


def test_a_job_that_a_younger_one_passed(store, app, sweeper):
    """The queue is not empty, but the job's message is not in it: a newer job is already running."""
    beat(store, "w1")
    submit(store, "lost")
    store.redis.zadd(keys.open_jobs(QUEUE), {"lost": 1.0})
    submit(store, "younger")
    store.claim(["younger"], "w1", "{}")
    submit(store, "waiting")
    send_message(app, "waiting", QUEUE, 5)
    assert sweeper.sweep() == 1
    assert num_queued(store, QUEUE) == 2


def test_it_is_patient_and_more_so_each_time(store, app):
    submit(store, "a")
    patient = Sweeper(store, app, [QUEUE], grace_s=60.0)
    assert patient.sweep() == 0
    eager = Sweeper(store, app, [QUEUE], grace_s=1.0)
    assert wait_until(lambda: eager.sweep() == 1, 60)
    store.redis.delete(*store.redis.keys("pagefleet.null.interactive*"))
    assert eager.sweep() == 0


def test_one_worker_sweeps_until_it_is_gone(store, app):
    """If two workers took turns, each would have to see a job twice, and their grace periods would add up."""
    first, second = (Sweeper(store, app, [QUEUE], grace_s=0.5, interval_s=0.2) for _ in range(2))
    submit(store, "a")
    first.sweep_if_elected()

    def sent_while_both_try():
        second.sweep_if_elected()
        first.sweep_if_elected()
        return num_queued(store, QUEUE) == 1

    assert wait_until(sent_while_both_try, 60)
    assert second._resends == {}
    # The first one is gone. The other takes over when the lock has expired.
    store.redis.delete(*store.redis.keys("pagefleet.null.interactive*"))
    assert wait_until(lambda: second.sweep_if_elected() or num_queued(store, QUEUE) == 1, 60)


def test_ended_and_forgotten_jobs_leave_the_ledger(store, sweeper):
    submit(store, "ended")
    store.cancel("ended")
    submit(store, "forgotten")
    store.redis.delete(keys.job("forgotten"))
    assert sweeper.sweep() == 0
    assert store.redis.zcard(keys.open_jobs(QUEUE)) == 0
    assert store.read("ended").state is JobState.CANCELLED
    assert store.redis.ttl(keys.job("ended")) > 0


def test_a_fault_tells_a_lost_job_from_a_dead_letter(store, app):
    faults = []
    sweeper = Sweeper(store, app, [QUEUE], grace_s=0.0, on_fault=lambda *fault: faults.append(fault))
    for job_id in ("gone", "unreadable"):
        submit(store, job_id)
    store.redis.delete(keys.job("gone"))
    store.redis.hset(keys.job("unreadable"), "state", "?")
    sweeper.sweep()
    assert sorted(faults) == [
        ("a job becomes a dead letter", "the data of job unreadable cannot be read"),
        ("an open job is removed from its ledger", "the data of job gone is gone"),
    ]
    assert store.dead_letters() == ["unreadable"]


def test_a_real_worker_runs_what_was_never_sent(null_stack):
    with FleetClient(redis_url=null_stack.redis_url) as fleet:
        fleet.models()
        store = fleet._live.store
        request = build_request({"model": "null", "prompt": "x", "seed": 1, "max_tokens": 3})
        store.submit("never-sent", request, queue=QUEUE, channel="", limits=Limits(100, 10**6))
        # Sweeps are 5 s apart, and a job must look stranded for two leases.
        assert len(fleet.attach("never-sent", idle_timeout=60).result().token_ids) == 3
