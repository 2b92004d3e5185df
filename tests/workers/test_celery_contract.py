"""What EnginePool and the admission step use of Celery and kombu, none of it public: pinned here, so that
another version fails with the name of what moved instead of hanging in production."""

from __future__ import annotations

import inspect
import threading

import celery
import kombu
import pytest
from celery.app.trace import build_tracer
from celery.backends.base import Backend, BaseKeyValueStoreBackend
from celery.backends.redis import RedisBackend
from celery.concurrency.base import BasePool, apply_target
from celery.worker.consumer.tasks import Tasks
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.asynchronous import Hub
from kombu.message import Message
from kombu.transport import virtual
from kombu.transport.redis import Channel, MultiChannelPoller, QoS

from pagefleet.api.contract import keys


def test_the_versions_are_those_that_the_pool_was_written_against():
    assert celery.__version__.startswith("5.7."), "EnginePool leans on Request's internals: re-check them all"
    assert kombu.__version__.startswith("5.7."), "admission leans on kombu's Redis QoS: re-check it"


def test_a_request_hands_the_pool_its_bound_methods_and_its_decoded_kwargs():
    source = inspect.getsource(Request.execute_using_pool)
    for use in (
        "args=(self._type, task_id, self._request_dict, self._body,",
        "accept_callback=self.on_accepted",
        "callback=self.on_success",
        "self._apply_result = maybe(ref, result)",
    ):
        assert use in source, use
    assert (
        "self._request_dict['args'], self._request_dict['kwargs'], _ = self.__payload"
        in inspect.getsource(Request.__init__)
    )


def test_a_failed_return_value_is_acknowledged_without_a_second_result():
    source = inspect.getsource(Request.on_success)
    assert "return self.on_failure(retval, return_ok=True)" in source
    failure = inspect.getsource(Request.on_failure)
    assert "elif isinstance(exc, Ignore):\n            return self.acknowledge()" in failure
    assert "if not requeue and (is_worker_lost or not return_ok):" in failure


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (Request.on_accepted, ["self", "pid", "time_accepted"]),
        (Request._announce_revoked, ["self", "reason", "terminated", "signum", "expired"]),
        (Request.terminate, ["self", "pool", "signal"]),
        (BasePool.on_apply, ["self", "args", "kwargs"]),
        (BasePool.terminate_job, ["self", "pid", "signal"]),
        (BasePool.register_with_event_loop, ["self", "loop"]),
        (QoS.can_consume, ["self"]),
        (QoS.restore_by_tag, ["self", "tag", "client", "leftmost"]),
        (MultiChannelPoller.on_poll_start, ["self"]),
    ],
)
def test_signatures(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters


def test_an_acknowledgement_goes_through_the_channels_qos():
    """UnackedMessages replaces ``qos.ack`` on the instance, and held messages get the new channel."""
    source = inspect.getsource(virtual.Channel.basic_ack)
    assert "self.qos.ack(delivery_tag)" in source
    assert "self.channel.basic_ack(self.delivery_tag" in inspect.getsource(Message.ack)
    assert "if not self.restore_at_shutdown" in inspect.getsource(virtual.QoS.restore_unacked_once)


def test_the_poller_asks_can_consume_before_each_brpop():
    assert "channel.qos.can_consume()" in inspect.getsource(MultiChannelPoller.on_poll_start)
    assert "qos" in inspect.getsource(Tasks.start)


def test_a_restore_puts_messages_at_the_front_where_brpop_takes_them():
    source = inspect.getsource(Channel._do_restore_message)
    assert "(pipe.lpush if leftmost else pipe.rpush)" in source


def test_results_can_be_signalled_without_being_stored():
    for name in ("mark_as_done", "mark_as_failure", "mark_as_revoked"):
        assert "store_result" in inspect.signature(getattr(Backend, name)).parameters


def test_a_result_is_stored_in_this_form():
    """workers/queue/result_encoder.py makes the result, and scripts store it."""
    stored = inspect.getsource(BaseKeyValueStoreBackend._store_result)
    for use in (
        "self._get_result_meta(result=result, state=state,",
        "meta['task_id'] = bytes_to_str(task_id)",
        "self._set_with_state(self.get_key_for_task(task_id), self.encode(meta), state)",
    ):
        assert use in stored, use
    assert "pipe.publish(key, value)" in inspect.getsource(RedisBackend._set)
    assert BaseKeyValueStoreBackend.task_keyprefix + "x" == keys.result("x")
    assert "{'pid': pid, 'hostname': hostname}, STARTED," in inspect.getsource(build_tracer)


def test_small_tasks_of_celerys_own_run_through_apply_target():
    assert list(inspect.signature(apply_target).parameters)[:5] == [
        "target",
        "args",
        "kwargs",
        "callback",
        "accept_callback",
    ]


def test_call_soon_wakes_the_loop_from_another_thread():
    """An acknowledgement must not wait for the poll timeout of an empty queue."""
    hub = Hub()
    ran = threading.Event()
    loop = hub.create_loop()
    hub.call_later(30, lambda: None)
    next(loop)
    thread = threading.Timer(0.1, lambda: hub.call_soon(ran.set))
    thread.start()
    for _ in range(3):
        next(loop)
        if ran.is_set():
            break
    assert ran.is_set()
    thread.join()
    hub.close()


def test_lanes_replace_how_brpop_is_sent():
    """workers/queue/lanes.py sends the same command with the lists in another order."""
    source = inspect.getsource(Channel._brpop_start)
    for use in (
        "self._q_for_pri(queue, pri) for pri in self.priority_steps",
        "self._in_poll = self.client.connection",
        "self._brpop_sent_at = monotonic()",
        "self.client.connection.send_command(*command_args)",
        "self.brpop_timeout",
    ):
        assert use in source, use
    assert "channel._brpop_start()" in inspect.getsource(MultiChannelPoller)


def test_a_message_is_put_back_in_three_parts():
    """PooledMessage._restore removes the message from Redis, from the channel and from Celery's state."""
    assert "super().ack(delivery_tag)" in inspect.getsource(QoS.reject)
    assert "self.restore_by_tag(delivery_tag, leftmost=True)" in inspect.getsource(QoS.reject)
    assert list(inspect.signature(virtual.QoS.ack).parameters) == ["self", "delivery_tag"]
    assert list(inspect.signature(task_ready).parameters)[:2] == ["request", "successful"]


def test_the_gate_stands_between_a_reply_and_its_consumer():
    """MessageGate replaces both on the instances."""
    assert "self.connection._deliver(loads(bytes_to_str(item)), dest)" in inspect.getsource(
        Channel._brpop_read
    )
    assert list(inspect.signature(virtual.Transport._deliver).parameters) == ["self", "message", "queue"]
    assert list(inspect.signature(MultiChannelPoller.on_readable).parameters) == ["self", "fileno"]


def test_a_message_is_written_down_through_the_channels_qos():
    """UnackedMessages replaces ``qos.append`` on the instance; the base class keeps the message."""
    assert "self.qos.append(message, message.delivery_tag)" in inspect.getsource(
        virtual.Channel.basic_consume
    )
    assert "super().append(message, delivery_tag)" in inspect.getsource(QoS.append)
    assert list(inspect.signature(virtual.QoS.append).parameters) == ["self", "message", "delivery_tag"]
