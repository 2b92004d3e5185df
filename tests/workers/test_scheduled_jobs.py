"""Scheduled jobs and rejected messages, with calls of the job store instead of a worker."""

from __future__ import annotations

import json
import time
import uuid

import pytest
import redis
from celery import Celery

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.broker.status import num_queued
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState, WorkerStatus
from pagefleet.api.contract.requests import build_request
from pagefleet.api.protocol.operation_types import Claim, ClaimVerdict, Limits, Schedule
from pagefleet.workers.queue.message_rules import refusal
from pagefleet.workers.recovery.sweeper import Sweeper
from pagefleet.workers.threads.polling import wait_until

QUEUE = keys.queue("null", "interactive")
FAILURE = json.dumps({"status": "FAILURE"})


@pytest.fixture
def app(store):
    app = make_celery(store.settings)
    yield app
    app.close()


def sweeper_of(store, app):
    return Sweeper(store, app, [QUEUE], grace_s=60.0)


def submit(store, job_id="a", **schedule):
    request = build_request({"model": "null", "prompt": "x", "seed": 1, "deadline_s": 100})
    made = Schedule(**{name: ms if isinstance(ms, str) else int(ms * 1000) for name, ms in schedule.items()})
    limits = Limits(1, 10**6)
    return store.submit(job_id, request, queue=QUEUE, channel="", limits=limits, schedule=made)


def claim(store, job_id="a") -> Claim:
    status = WorkerStatus(worker_id="w1", model="null", host="h", pid=1, started_at=0.0)
    store.beat(status, 60.0)
    (reply,) = store.claim([job_id], "w1", "{}")
    return reply


def test_it_is_sent_once_when_its_time_has_come_by_whichever_sweeper_lives(store, app):
    due = time.time() + 0.5
    assert submit(store, not_before=due).created
    # It counts for the queue's depth at once, and as enqueued when it is due.
    assert submit(store, "b").depth == 1
    fields = store.read("a").fields
    assert int(fields["enqueued_at"]) == int(due * 1000)
    assert int(fields["deadline"]) == int(due * 1000) + 100_000
    assert claim(store).verdict is ClaimVerdict.EARLY
    assert sweeper_of(store, app).sweep() == 0
    assert wait_until(lambda: sweeper_of(store, app).sweep() == 1, 60)
    assert time.time() >= due
    assert (sweeper_of(store, app).sweep(), num_queued(store, QUEUE)) == (0, 1)
    assert claim(store).verdict is ClaimVerdict.CLAIMED


def test_one_whose_message_was_lost_is_found_as_any_other(store, app):
    """The sweeper died between the two calls. The job is an ordinary one by then."""
    submit(store, not_before=time.time() + 0.1)
    assert wait_until(lambda: store.due("a"), 60)
    assert not store.due("a")
    assert Sweeper(store, app, [QUEUE], grace_s=0.0).sweep() == 1


def test_an_eta_that_has_passed_is_none(store):
    submit(store, not_before=time.time() - 5)
    assert "not_before" not in store.read("a").fields
    assert claim(store).verdict is ClaimVerdict.CLAIMED


def test_expires_ends_what_nobody_began(store, app):
    submit(store, start_by=time.time() - 1)
    assert claim(store).verdict is ClaimVerdict.ENDED
    assert store.read("a").has_expired
    JobCloser(store, app).close("a")
    submit(store, "b", start_by=time.time() + 0.2)
    sweeper = sweeper_of(store, app)
    assert wait_until(lambda: sweeper.sweep() == 0 and store.read("b").state is JobState.CANCELLED, 60)
    assert "expired" in str(app.AsyncResult("b").result)


def test_expires_leaves_what_has_begun(store):
    submit(store, start_by=time.time() + 0.2)
    assert claim(store).verdict is ClaimVerdict.CLAIMED
    time.sleep(0.3)
    store.release("a", "w1", 1)
    assert not store.expire("a")
    assert claim(store).verdict is ClaimVerdict.CLAIMED


def test_whoever_closes_a_job_with_callbacks_sends_for_a_worker(store, app):
    """The job has no message: the one that brought it was acknowledged."""
    submit(store, not_before=time.time() + 60, canvas=json.dumps({"chain": [{"task": "t"}]}))
    store.cancel("a")
    JobCloser(store, app).close("a")
    assert num_queued(store, QUEUE) == 1
    assert store.claim_callbacks("a")
    JobCloser(store, app).close("a")
    assert num_queued(store, QUEUE) == 1


def test_a_refusal_speaks_for_no_other_job(store):
    submit(store)
    assert not store.refuse("a", FAILURE)
    assert store.redis.get(keys.result("a")) is None
    for final in ("SUCCESS", "FAILURE", "REVOKED"):
        store.redis.set(keys.result("b"), json.dumps({"status": final}))
        assert not store.refuse("b", FAILURE)
    store.redis.set(keys.result("b"), "not JSON")
    assert not store.refuse("b", FAILURE)
    store.redis.set(keys.result("b"), json.dumps({"status": "STARTED"}))
    assert store.refuse("b", FAILURE)
    assert 0 < store.redis.ttl(keys.result("b")) <= store.settings.result_ttl_s


def test_a_refusal_that_a_dead_worker_left_is_answered_by_the_next(null_stack, service: Celery):
    """The refusal is unacknowledged meanwhile, and is restored like any message."""
    job_id = str(uuid.uuid4())
    message = refusal({"headers": {"id": job_id}}, job_id, QUEUE, "it is a test")
    with redis.Redis.from_url(null_stack.redis_url) as raw:
        for _ in range(2):  # the second one finds the result, and is dropped
            message["properties"]["delivery_tag"] = str(uuid.uuid4())
            raw.lpush(QUEUE, json.dumps(message))
        with pytest.raises(Exception, match="it is a test"):
            service.AsyncResult(job_id).get(timeout=60)
        assert wait_until(lambda: not raw.llen(QUEUE), 60)
