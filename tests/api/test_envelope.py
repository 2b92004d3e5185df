"""The message that SUBMIT sends is the one that Celery's ``send_task`` would send."""

from __future__ import annotations

import base64
import json
import os

import pytest
from job_store_helpers import QUEUE, beat, claim, submit

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.envelope import JobMessageEncoder
from pagefleet.api.broker.sending import send_message
from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import GenerateRequest
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.connection import database_of
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import Limits, QueueMessage

REPR = "{'model': 'ü', 'prompt': '… <5 chars>'}"
MESSAGE = QueueMessage("m.list", "the message", "events", "the event")


@pytest.fixture(params=[0, 3], ids=["database 0", "database 3"])
def near(request, redis_server):
    store = JobStore(FleetSettings(redis_url=f"{redis_server.url.rpartition('/')[0]}/{request.param}"))
    store.redis.flushall()
    yield store
    store.close_connections()


def unpacked(text):
    """The parts of a message, without what differs between two messages of one job."""
    message = json.loads(text)
    body = json.loads(base64.b64decode(message.pop("body")))
    del message["properties"]["delivery_tag"]
    for part in body if isinstance(body, list) else [body]:
        for field in ("t", "timestamp", "clock"):
            part.pop(field, None) if isinstance(part, dict) else None
    return message, body


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_message_and_event_are_those_of_send_task(near, priority):
    app = make_celery(near.settings)
    queue = keys.queue("ü/x", "batch")
    with near.redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("*celeryev*")
        send_message(app, "job ü", queue, priority, kwargs_repr=REPR)
        heard = [listener.get_message(timeout=0.5) for _ in range(3)]
    (event,) = [each for each in heard if each is not None]
    (name,) = near.redis.keys("pagefleet.*")
    encoder = JobMessageEncoder(app, database_of(near.redis))
    mine = encoder.encode("job ü", queue, priority, kwargs_repr=REPR)
    assert mine.list_name == name
    assert unpacked(mine.message) == unpacked(near.redis.lindex(name, 0))
    assert mine.event_channel == event["channel"]
    assert unpacked(mine.event) == unpacked(event["data"])
    app.close()


def test_another_process_has_its_own_names(near):
    app = make_celery(near.settings)
    encoder = JobMessageEncoder(app, 0)
    event = unpacked(encoder.encode("j", QUEUE, 5).event)[1]
    assert event["pid"] == os.getpid()
    assert event["kwargs"] == "..."


def submission(job_id="j", *, max_depth=10, again=False):
    request = GenerateRequest(model="m", prompt="Hello", tenant="t")
    return operations.submit(
        job_id,
        request,
        queue=QUEUE,
        channel="c",
        limits=Limits(max_depth, 10),
        asked="hash",
        again=again,
        message=MESSAGE,
    )


def num_sent(store):
    return store.redis.llen(MESSAGE.list_name)


class TestTheScript:
    def test_a_created_job_has_its_message_and_its_event(self, store):
        with store.redis.pubsub(ignore_subscribe_messages=True) as listener:
            listener.subscribe(MESSAGE.event_channel)
            assert store.run(submission()).created
            heard = [listener.get_message(timeout=0.2) for _ in range(3)]
        assert [each["data"] for each in heard if each] == [MESSAGE.event]
        assert store.redis.lrange(MESSAGE.list_name, 0, -1) == [MESSAGE.message]
        assert store.read("j").request().prompt == "Hello"

    def test_one_that_exists_or_is_refused_sends_none(self, store):
        store.run(submission())
        assert store.run(submission()).exists
        assert store.run(submission("k", max_depth=1)).depth == 1
        beat(store, "w1")
        claim(store, "j")
        store.delete("j", QUEUE)
        assert num_sent(store) == 1

    def test_a_deleted_job_is_not_sent_again(self, store):
        store.run(submission())
        assert store.delete("j", QUEUE) == "ended"
        store.close("j", QUEUE)
        assert store.run(submission(again=True)).is_deleted
        assert num_sent(store) == 1

    def test_without_a_message_none_is_sent(self, store):
        submit(store)
        assert store.redis.keys("pagefleet.*") == []

    def test_nothing_is_written_if_the_list_is_of_another_type(self, store):
        store.redis.set(MESSAGE.list_name, "x")
        with pytest.raises(Exception, match="cannot be read"):
            store.run(submission())
        assert store.redis.keys("pf:*") == []
