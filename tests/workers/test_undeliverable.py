"""A message that arrives just after its consumer was cancelled, for example when the worker stops."""

from __future__ import annotations

import base64
import json
import logging

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.workers.queue.message_gate import MessageGate

QUEUE = keys.queue("null", "interactive")


def test_it_returns_to_the_front_of_its_queue_without_a_warning(store, caplog):
    """Two messages wait; the first is popped, and then the queue has no consumer."""
    app = make_celery(store.settings, worker_id="leaving")
    send_message(app, "first", QUEUE, 5)
    send_message(app, "second", QUEUE, 5)
    with app.connection() as connection, connection.channel() as channel:
        MessageGate(2**20).guard(channel, [QUEUE], [keys.GENERATE_TASK])
        before = store.redis.keys("*")
        (waiting,) = [key for key in before if key.startswith(QUEUE)]
        second, _first = store.redis.lrange(waiting, 0, -1)
        with caplog.at_level(logging.WARNING):
            message = channel._get(QUEUE)
            assert store.redis.lrange(waiting, 0, -1) == [second]
            connection.transport._deliver(message, QUEUE)
        assert caplog.text == ""
        ids = [json.loads(entry)["headers"]["id"] for entry in store.redis.lrange(waiting, 0, -1)]
        assert ids == ["second", "first"], "the right end is the front"
        # And it is not held as unacknowledged.
        assert set(store.redis.keys("*")) == set(before)
    app.close()


def test_a_command_is_dropped(store, caplog):
    app = make_celery(store.settings, worker_id="leaving")
    with app.connection() as connection, connection.channel() as channel:
        gate = MessageGate(2**20)
        gate.guard(channel, [QUEUE], [keys.GENERATE_TASK])
        envelope = {
            "body": base64.b64encode(b'{"method": "ping", "arguments": {}}').decode(),
            "headers": {"clock": 1},
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "properties": {"delivery_info": {}, "delivery_tag": "1", "body_encoding": "base64"},
        }
        with caplog.at_level(logging.WARNING):
            connection.transport._deliver(envelope, "celery.pidbox")
        assert (caplog.text, gate.num_bad) == ("", 0)
    app.close()
