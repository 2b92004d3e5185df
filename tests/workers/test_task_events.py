"""Task events leave many at a time, and Celery's own monitors read them."""

from __future__ import annotations

import json
import threading

import pytest
from celery.events import EventReceiver

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.workers.queue.task_events import batch_events
from pagefleet.workers.threads.polling import wait_until


@pytest.fixture
def app(store):
    app = make_celery(store.settings, worker_id="w")
    yield app
    app.close()


@pytest.mark.parametrize("text", ["plain", "ü…", "\ud800"], ids=ascii)
def test_many_events_are_one_message_that_celery_reads(app, store, text):
    received = []
    listener = store.redis.pubsub(ignore_subscribe_messages=True)
    with app.connection_for_read() as reading, app.connection_for_write() as writing, listener:
        listener.psubscribe("*celeryev*")
        receiver = EventReceiver(reading, handlers={"task-succeeded": received.append}, app=app)
        reader = threading.Thread(target=receiver.capture, kwargs={"wakeup": False}, daemon=True)
        reader.start()
        assert wait_until(lambda: store.redis.pubsub_numpat() == 2, 30)
        dispatcher = app.events.Dispatcher(writing, buffer_group=["task"])
        batch_events(dispatcher)
        for index in range(100):
            dispatcher.send("task-succeeded", uuid=f"j{index}", result=text, runtime=0.5)
        dispatcher.flush()
        assert wait_until(lambda: len(received) == 100, 30)
        receiver.should_stop = True
        reader.join()
        messages = [listener.get_message(timeout=0.2) for _ in range(4)]
    assert [event["uuid"] for event in received] == [f"j{index}" for index in range(100)]
    assert {event["result"] for event in received} == {text}
    assert {event["type"] for event in received} == {"task-succeeded"}
    (message,) = [json.loads(each["data"]) for each in messages if each is not None]
    assert message["content-type"] == "application/json"
