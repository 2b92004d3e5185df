"""A worker takes several messages at once while messages wait, and stores and acknowledges them together."""

from __future__ import annotations

import contextlib
import time

import pytest
from redis.exceptions import NoPermissionError

from pagefleet.api.broker.celery_app import make_celery, make_queue
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.workers.queue.backlog import Backlog
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.queue.unacked import UnackedMessages, restore_unacked

QUEUES = {lane: f"pagefleet.null.{lane}" for lane in ("interactive", "batch")}
UNACKED = keys.unacked("w")["unacked_key"]
LEASE_S = 10.0


class Consumer:
    """A channel with a backlog, as the admission step makes it."""

    def __init__(self, app, channel):
        self.app, self.channel, self.room = app, channel, {"interactive": 100, "batch": 100}
        self.messages, self.num_stored = [], []
        self.unacked = UnackedMessages(channel, lambda: None)
        self.unacked.guard()
        self.gate = MessageGate(10**6)
        for name in QUEUES.values():
            queue = make_queue(name)(channel)
            queue.declare()
            queue.consume(name, self._receive, no_ack=False)
        self.backlog = Backlog(
            channel,
            self.unacked,
            self.gate.examiner([keys.GENERATE_TASK]),
            lambda: self.room,
            QUEUES,
            LEASE_S,
        )

    @property
    def ids(self):
        return [message.headers["id"] for message in self.messages]

    def _receive(self, message):
        self.messages.append(message)
        self.num_stored.append(self.channel._create_client().hlen(UNACKED))

    def send(self, *job_ids, lane="interactive", priority=5):
        for job_id in job_ids:
            send_message(self.app, job_id, QUEUES[lane], priority)


@pytest.fixture
def consumer(store):
    store.redis.zadd(keys.WORKERS, {"w": time.time() * 1000})
    app = make_celery(store.settings, worker_id="w")
    with app.connection_for_read() as connection:
        yield Consumer(app, connection.default_channel)
    app.close()


def test_half_of_the_queue_is_taken_and_stored_before_the_first_is_delivered(consumer):
    consumer.send("a", "b", "c", "d")
    assert consumer.backlog.take() == 2
    assert consumer.ids == ["a", "b"]
    assert consumer.num_stored == [2, 2]
    assert consumer.backlog.take() == 1
    assert consumer.backlog.take() == 1
    assert consumer.backlog.take() == 0
    assert consumer.ids == ["a", "b", "c", "d"]


def test_a_worker_leaves_messages_to_living_workers(consumer, store):
    now_ms = time.time() * 1000
    store.redis.zadd(keys.WORKERS, {"v": now_ms, "dead": now_ms - 2 * LEASE_S * 1000})
    consumer.send(*"abcdefgh")
    assert consumer.backlog.take() == 2


def test_no_more_messages_are_taken_than_there_is_room(consumer):
    consumer.send(*"abcdefgh")
    consumer.room = {"interactive": 3, "batch": 3}
    assert consumer.backlog.take() == 3
    consumer.room = {"interactive": 0, "batch": 0}
    assert consumer.backlog.take() == 0
    consumer.room = {}
    assert consumer.backlog.take() == 0


def test_urgent_messages_come_first_and_batch_work_only_into_its_room(consumer):
    consumer.send("b", lane="batch", priority=9)
    consumer.send("later", priority=0)
    consumer.send("urgent", priority=9)
    while consumer.backlog.take():
        pass
    assert consumer.ids == ["urgent", "later", "b"]
    consumer.send("c", lane="batch")
    consumer.room = {"interactive": 5, "batch": 0}
    assert consumer.backlog.take() == 0


def test_messages_are_acknowledged_together_at_the_flush(consumer, store):
    consumer.send("a", "b", "c", "d")
    while consumer.backlog.take():
        pass
    for message in consumer.messages[:3]:
        message.ack()
    assert store.redis.hlen(UNACKED) == 4
    consumer.unacked.flush()
    assert store.redis.hkeys(UNACKED) == [consumer.messages[3].delivery_tag]
    assert store.redis.zcard(keys.unacked("w")["unacked_index_key"]) == 1


def test_what_was_taken_can_be_restored_to_the_front(consumer):
    consumer.send("a", "b", "c", "d")
    consumer.backlog.take()
    restore_unacked(consumer.channel, "w")
    consumer.messages.clear()
    while consumer.backlog.take():
        pass
    assert consumer.ids == ["a", "b", "c", "d"]


def test_a_broken_message_among_others_is_dropped_alone(consumer, store):
    consumer.send("a")
    store.redis.lpush(f"{QUEUES['interactive']}\x06\x164", "{", '{"headers": {}}')
    consumer.send("b")
    for _ in range(4):
        with contextlib.suppress(ValueError):
            consumer.backlog.take()
    assert consumer.ids == ["a", "b"]
    assert consumer.gate.num_bad == 2


def test_messages_of_a_cancelled_consumer_return_in_their_order(consumer, store):
    consumer.send(*"abcd")
    callback = consumer.channel.connection._callbacks.pop(QUEUES["interactive"])
    assert consumer.backlog.take() == 2
    assert not consumer.messages
    consumer.channel.connection._callbacks[QUEUES["interactive"]] = callback
    while consumer.backlog.take():
        pass
    assert consumer.ids == list("abcd")


def test_a_user_without_the_right_takes_messages_one_by_one(consumer, monkeypatch):
    """Its line in the ACL file is from before this version."""

    def refuse(*_):
        raise NoPermissionError("this user has no permissions to run the 'rpop' command")

    monkeypatch.setattr(consumer.backlog._client, "evalsha", refuse)
    consumer.send("a", "b")
    assert consumer.backlog.take() == 0
    assert not consumer.backlog._is_allowed


def test_a_message_with_half_of_a_surrogate_pair_is_stored_and_restored(consumer, store):
    consumer.send("a")
    name = f"{QUEUES['interactive']}\x06\x164"
    text = store.redis.rpop(name).replace('"lang": "py"', '"lang": "py", "x": "\\ud800"')
    store.redis.lpush(name, text)
    assert consumer.backlog.take() == 1
    restore_unacked(consumer.channel, "w")
    assert consumer.backlog.take() == 1
    assert consumer.ids == ["a", "a"]
    assert consumer.messages[1].headers["x"] == "\ud800"
