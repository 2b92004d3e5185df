"""Jobs that end at the same time are closed in two round trips, each as if it were closed alone."""

from __future__ import annotations

import json

import pytest
from celery.result import AsyncResult
from job_store_helpers import QUEUE, REQUEST, beat, claim, item, step, submit

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import DeadlineExceeded, FleetError
from pagefleet.api.contract.messages import ErrorInfo, JobState
from pagefleet.api.protocol.operation_types import CancelVerdict

ENDED = ("done", "failed", "cancelled", "late", "deleted")


@pytest.fixture
def app(store):
    app = make_celery(store.settings)
    yield app
    app.close()


@pytest.fixture
def closer(store, app):
    return JobCloser(store, app, send_callbacks=False)


def end_all(store, prefix):
    """One job of each kind of end, and one that still runs."""
    beat(store, "w1")
    for name in (*ENDED, "open"):
        submit(store, prefix + name, max_depth=100)
        assert claim(store, prefix + name).epoch == 1
    step(store, item(0, 2, job_id=f"{prefix}done", reason="length", accepted=3))
    error = ErrorInfo(code="invalid_request", message="too much")
    store.end(f"{prefix}failed", "w1", 1, JobState.FAILED, error=error)
    store.end(f"{prefix}cancelled", "w1", 1, JobState.CANCELLED, reason="cancelled")
    store.end(f"{prefix}late", "w1", 1, JobState.FAILED, reason="deadline")
    store.delete(f"{prefix}deleted", QUEUE)
    store.end(f"{prefix}deleted", "w1", 1, JobState.CANCELLED, reason="cancelled")


def stored(store, job_id):
    """What remains of a job, without what differs from job to job."""
    text = store.redis.get(keys.result(job_id))
    meta = json.loads(text.replace(job_id, "ID")) if text else None
    if meta:
        del meta["date_done"]
        meta["result"] = {k: v for k, v in meta["result"].items() if not k.endswith("_at")}
    ttls = [
        round(store.redis.ttl(name) / 60)
        for name in (keys.job(job_id), keys.log(job_id), keys.result(job_id))
    ]
    return meta, ttls, store.redis.zscore(keys.open_jobs(QUEUE), job_id) is None


def test_closed_together_is_closed_as_alone(store, closer):
    end_all(store, "t-")
    end_all(store, "a-")
    names = [*ENDED, "open", "missing"]
    records = closer.close_together([f"t-{name}" for name in names])
    alone = [closer.close(f"a-{name}") for name in names]
    assert [record and record.state for record in records] == [record and record.state for record in alone]
    assert [record is None for record in records] == [False] * len(ENDED) + [True, True]
    for name in names:
        assert stored(store, f"t-{name}") == stored(store, f"a-{name}"), name


def test_clients_of_celery_read_the_results(store, app, closer):
    end_all(store, "")
    closer.close_together(ENDED)
    assert AsyncResult("done", app=app).get(timeout=5)["choices"][0]["token_ids"] == [0, 1]
    with pytest.raises(FleetError, match="too much"):
        AsyncResult("failed", app=app).get(timeout=5)
    with pytest.raises(DeadlineExceeded):
        AsyncResult("late", app=app).get(timeout=5)
    assert AsyncResult("cancelled", app=app).state == "REVOKED"
    assert AsyncResult("deleted", app=app).state == "PENDING"


def test_each_result_is_announced_once(store, closer):
    end_all(store, "")
    with store.redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe(*(keys.result(name) for name in ENDED))
        assert None not in closer.close_together(ENDED)
        messages = [listener.get_message(timeout=0.1) for _ in range(3 * len(ENDED))]
        heard = [message["channel"] for message in messages if message is not None]
    assert sorted(heard) == sorted(keys.result(name) for name in ENDED if name != "deleted")


def test_a_success_is_not_overwritten(store, closer):
    submit(store, "j")
    assert store.cancel("j") is CancelVerdict.ENDED
    for status, replaced in (("SUCCESS", False), ("STARTED", True)):
        theirs = json.dumps({"status": status, "result": "theirs", "traceback": None, "task_id": "j"})
        store.redis.set(keys.result("j"), theirs)
        closer.close_together(["j", "missing"])
        assert (store.redis.get(keys.result("j")) != theirs) is replaced


def test_a_job_keeps_its_own_ttl(store, closer):
    submit(store, "j", request=REQUEST.model_copy(update={"result_ttl_s": 77}))
    store.cancel("j")
    closer.close_together(["j", "missing"])
    for name in (keys.job("j"), keys.result("j")):
        assert 70_000 < store.redis.pttl(name) <= 77_000


@pytest.mark.parametrize("broken", ["hash", "log", "ledger"])
def test_a_job_that_cannot_be_read_is_left_and_the_others_are_closed(store, closer, broken):
    end_all(store, "")
    if broken == "hash":
        store.redis.hset(keys.job("done"), "num_choices", "many")
    elif broken == "log":
        store.redis.lset(keys.log("done"), 0, "{")
    else:
        store.redis.hset(keys.job("done"), "queue", "other.interactive")
        store.redis.set(keys.open_jobs("other.interactive"), "not a sorted set")
    first, second = closer.close_together(["done", "failed"])
    assert first is None
    assert second.state is JobState.FAILED
    assert store.redis.zscore(keys.open_jobs(QUEUE), "failed") is None


def test_a_server_without_the_script_gets_it(store, closer):
    end_all(store, "")
    store.redis.script_flush()
    assert None not in closer.close_together(["done", "failed"])
    assert store.redis.zscore(keys.open_jobs(QUEUE), "done") is None
