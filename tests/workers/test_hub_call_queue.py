"""Calls into Celery's event loop, also from a signal handler, which must wake the loop."""

from __future__ import annotations

import os
import signal
import time

from kombu.asynchronous import Hub

from pagefleet.workers.queue.hub_call_queue import HubCallQueue


def test_a_signal_handler_wakes_the_hub():
    """Without a call the hub waits for its connections for up to a second, even if a signal arrives."""
    hub, calls = Hub(), HubCallQueue()
    reading, writing = os.pipe()
    hub.add_reader(reading, lambda: None)
    calls.attach(hub)
    hub.run_once()
    before = signal.signal(signal.SIGALRM, lambda *_: calls.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        begun_at = time.monotonic()
        hub.run_once()
        assert time.monotonic() - begun_at < 0.9
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        hub.close()
        os.close(reading)
        os.close(writing)


def test_calls_run_in_their_order_and_one_that_fails_keeps_none_back():
    calls, ran = HubCallQueue(), []
    for call in (lambda: ran.append(1), lambda: 1 / 0, lambda: ran.append(2)):
        calls.post(call)
    calls.run_all()
    assert ran == [1, 2]
