"""Every job's message is acknowledged in the end, because unacknowledged ones would fill the worker."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from pagefleet.api import FleetClient, InvalidRequest
from pagefleet.api.broker.celery_app import make_celery, make_queue
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState
from pagefleet.workers.app import AdmissionStep
from pagefleet.workers.queue.hub_call_queue import HubCallQueue
from pagefleet.workers.queue.message_gate import MessageGate
from pagefleet.workers.queue.pooled_message import PooledMessage
from pagefleet.workers.recovery.reaper import Reaper
from pagefleet.workers.threads.polling import wait_until


def nothing_is_unacked(fleet: FleetClient) -> bool:
    redis = fleet._live.store.redis
    workers = fleet.status().workers
    return all(not redis.hlen(keys.unacked(worker.worker_id)["unacked_key"]) for worker in workers)


def queues_are_empty(fleet: FleetClient) -> bool:
    return all(queue.num_queued == 0 for queue in fleet.status().queues)


def all_is_answered(fleet: FleetClient) -> bool:
    return wait_until(lambda: queues_are_empty(fleet) and nothing_is_unacked(fleet), 60)


def test_of_a_job_past_its_deadline(fleet):
    result = fleet.generate("x", max_tokens=1000, deadline_s=0.3).result()
    assert result.finish_reason == "deadline"
    assert all_is_answered(fleet)


def test_of_a_job_that_the_worker_refuses(fleet):
    """Only the worker, which has the tokenizer, can find that the text is too long."""
    with pytest.raises(InvalidRequest):
        fleet.generate("x" * 100_000).result()
    assert all_is_answered(fleet)


def test_of_a_job_that_nobody_knows(fleet):
    send_message(fleet._live.app, "unknown-job", keys.queue("null", "interactive"), 5)
    assert all_is_answered(fleet)


def test_more_failures_than_the_worker_has_seats(fleet):
    """An unacknowledged message takes a place forever. After 64 the worker would not take any more."""
    streams = [fleet.generate("x", max_tokens=1000, deadline_s=0.2) for _ in range(70)]
    assert {stream.result().finish_reason for stream in streams} == {"deadline"}
    assert len(fleet.generate("x", max_tokens=3, idle_timeout=20).result().token_ids) == 3
    assert all_is_answered(fleet)


def test_of_a_job_whose_message_was_put_back_while_it_ran(fleet):
    """The same worker may receive the message again. It is acknowledged once, and not before the end."""
    stream = fleet.generate("x", max_tokens=1200)
    next(stream)
    live = fleet._live
    (worker,) = fleet.status().workers
    ledger = keys.unacked(worker.worker_id)["unacked_key"]
    reaper = Reaper(live.store, "survivor", live.app)
    with reaper._connection_as(worker.worker_id) as connection:
        (tag,) = live.store.redis.hkeys(ledger)
        connection.default_channel.qos.restore_by_tag(tag)
    assert wait_until(lambda: live.store.redis.hkeys(ledger) == [tag], 60)
    assert not wait_until(lambda: live.store.redis.hkeys(ledger) != [tag], 1.0)
    assert len(stream.result().token_ids) == 1200
    assert stream.result().attempts == 1
    assert all_is_answered(fleet)


def test_what_the_server_has_popped_is_read_although_the_room_is_gone(store):
    """A worker loses its lease while its BRPOP waits. A message that arrives then must not stay unread."""
    app = make_celery(store.settings, worker_id="w")
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        queue = make_queue("pagefleet.null.interactive")(channel)
        queue.declare()
        delivered = []
        queue.consume("tag", delivered.append, no_ack=True)
        room, names_of = ["interactive"], {"interactive": ["pagefleet.null.interactive"]}
        names = SimpleNamespace(
            amqp=SimpleNamespace(queues=names_of["interactive"]), tasks=[keys.GENERATE_TASK]
        )
        worker = SimpleNamespace(
            gate=MessageGate(10**6), queues=names_of, settings=SimpleNamespace(lease_s=10.0)
        )
        pool = SimpleNamespace(
            lanes_with_room=lambda: room,
            room=lambda: dict.fromkeys(room, 1),
            hub_calls=HubCallQueue(),
            put_together=nullcontext,
            use_channel=lambda *_: None,
            worker=worker,
            app=names,
        )
        AdmissionStep(SimpleNamespace()).start(
            SimpleNamespace(
                pool=pool,
                task_consumer=SimpleNamespace(channel=channel),
                event_dispatcher=SimpleNamespace(producer=SimpleNamespace(channel=channel, publish=None)),
            )
        )
        assert channel.qos.can_consume()
        channel.client.connection = channel.client.connection_pool.get_connection()
        channel._brpop_start()
        room.clear()
        send_message(app, "job", "pagefleet.null.interactive", 5)
        assert channel.qos.can_consume()
        channel._brpop_read()
        assert [message.headers["id"] for message in delivered] == ["job"]
        assert not channel.qos.can_consume()
        channel._brpop_start()
        assert not channel._in_poll
    app.close()


class _Request:
    """The part of Celery's request that a pooled message uses for a cancelled job."""

    id = "a"

    def __init__(self, time_start):
        self.time_start = time_start
        self.announced = []

    def callback(self, *_):
        raise AssertionError("a cancelled job is no success and no failure")

    def send_event(self, type_, **_):
        self.announced.append(type_)

    def acknowledge(self):
        self.announced.append("acknowledged")


@pytest.mark.parametrize(
    ("time_start", "announced"),
    [(None, ["task-revoked", "acknowledged"]), (1.0, [])],
    ids=["before", "after"],
)
def test_of_a_job_that_is_revoked_before_or_after_its_start(time_start, announced):
    """Celery acknowledges only a message whose task has started. The pool acknowledges the others."""
    request = _Request(time_start)
    hub_calls = SimpleNamespace(post=lambda call: call())
    pool = SimpleNamespace(hub_calls=hub_calls, cancel=lambda _: None, forget=lambda _: None)
    fields = {"id": "a", "args": [], "kwargs": {"job_id": "a"}}
    callbacks = {"accept_callback": None, "callback": request.callback}
    message = PooledMessage(pool, 1, fields, callbacks)
    message.terminate()
    message.finish(SimpleNamespace(state=JobState.CANCELLED, has_expired=False))
    assert request.announced == announced
