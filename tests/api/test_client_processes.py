"""One FleetClient among processes and threads: gunicorn forks it, threads share it, Celery tasks use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest
from celery import Celery

from pagefleet.api import FleetClient

SEED_7 = 'zF E;@l9!Uhk= 4"'


def in_forked_child(act, timeout_s=60.0):
    """Runs ``act`` in a child of os.fork and returns its text, which comes through a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(act()).encode())
        except Exception:  # noqa: BLE001  the parent is told
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)  # pytest's own exit handlers are the parent's
    os.close(writing)
    alarm = threading.Timer(timeout_s, os.kill, (child, signal.SIGKILL))
    alarm.start()
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    alarm.cancel()
    os.waitpid(child, 0)
    return text


def generate(client, seed=7, max_tokens=16):
    return client.generate("Hello", seed=seed, max_tokens=max_tokens).text()


class TestFork:
    def test_a_client_made_before_the_fork_and_not_used_yet(self, null_stack):
        with FleetClient(redis_url=null_stack.redis_url) as client:
            assert in_forked_child(lambda: generate(client)) == SEED_7
            assert generate(client) == SEED_7

    def test_a_client_used_before_the_fork(self, fleet):
        assert generate(fleet) == SEED_7
        assert in_forked_child(lambda: generate(fleet)) == SEED_7
        assert generate(fleet) == SEED_7

    def test_with_a_stream_open_in_the_parent(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=200)
        text = next(stream).text
        assert in_forked_child(lambda: generate(fleet)) == SEED_7
        text += next(stream).text
        text += "".join(chunk.text for chunk in stream)
        assert text == generate(fleet, max_tokens=200)

    def test_children_and_parent_at_the_same_time(self, fleet):
        generate(fleet)
        expected = {seed: generate(fleet, seed, 100) for seed in range(3)}
        streams = [fleet.generate("Hello", seed=seed, max_tokens=100) for seed in range(3)]

        def in_child():
            inner = [fleet.generate("Hello", seed=seed, max_tokens=100) for seed in range(3)]
            return [stream.text() for stream in inner] == list(expected.values())

        assert in_forked_child(in_child) == "True"
        assert [stream.text() for stream in streams] == list(expected.values())

    def test_a_grandchild(self, fleet):
        generate(fleet)
        assert (
            in_forked_child(lambda: generate(fleet) + in_forked_child(lambda: generate(fleet))) == SEED_7 * 2
        )

    def test_the_child_reads_live(self, fleet, live_only):
        """Over a channel of its own, not from the log after some silence."""
        generate(fleet)

        def timed():
            started = time.monotonic()
            generate(fleet)
            return time.monotonic() - started

        assert float(in_forked_child(timed)) < live_only

    def test_a_child_can_close_what_it_inherited(self, fleet, live_only):
        stream = fleet.generate("Hello", seed=7, max_tokens=100)
        next(stream)
        in_forked_child(lambda: (stream.close(), fleet.close()))
        started = time.monotonic()
        assert len(stream.text()) == 100
        assert time.monotonic() - started < live_only


def test_from_eight_threads_at_once(fleet):
    expected = {seed: generate(fleet, seed, 30) for seed in range(4)}
    wrong = []
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for seed in range(4):
            text = generate(fleet, seed, 30)
            if text != expected[seed]:
                wrong.append((number, seed, text))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_client_that_is_first_used_by_threads_at_once_opens_one_connection_each_way(null_stack):
    with FleetClient(redis_url=null_stack.redis_url) as client:
        start = threading.Barrier(8)
        seen = []

        def work():
            start.wait()
            seen.append(client._live)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(seen) == 8
        assert len(set(map(id, seen))) == 1


def test_one_thread_closes_while_another_calls(null_stack, monkeypatch):
    fleet = FleetClient(redis_url=null_stack.redis_url)
    fleet.open()
    subscriber = fleet._live.subscriber
    wake = subscriber._wake
    caller = threading.Thread(target=fleet.models)

    def call_in_between():
        monkeypatch.setattr(subscriber, "_wake", wake)
        caller.start()
        caller.join(0.5)
        wake()

    monkeypatch.setattr(subscriber, "_wake", call_in_between)
    closer = threading.Thread(target=fleet.close, daemon=True)
    closer.start()
    closer.join(60)
    caller.join(60)
    assert not closer.is_alive()
    fleet.close()


SERVICE = """
import sys
from celery import Celery
from pagefleet.api import FleetClient

app = Celery("service", broker="{url}", backend="{url}")
app.conf.update(task_default_queue="service", broker_connection_retry_on_startup=True,
                task_acks_late=True, task_reject_on_worker_lost=True)
fleet = FleetClient(redis_url="{url}")   # in the parent: prefork's children inherit it


@app.task
def summarise(seed):
    return fleet.generate("Hello", seed=seed, max_tokens=16).text()


@app.task
def enqueue():
    return fleet.generate("Hello", seed=7, max_tokens=16, detached=True).job_id
"""


@pytest.fixture(scope="module")
def service(null_stack, tmp_path_factory):
    """Another service's own Celery worker, on the same Redis."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "service.py").write_text(textwrap.dedent(SERVICE.format(url=null_stack.redis_url)))
    command = [
        sys.executable, "-m", "celery", "-A", "service", "worker", "-Q", "service", "-P", "prefork",
        "-c", "2", "--without-mingle", "--without-gossip", "--without-heartbeat", "-l", "warning",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    app = Celery("caller", broker=null_stack.redis_url, backend=null_stack.redis_url, set_as_current=False)
    app.conf.task_default_queue = "service"
    yield app
    app.close()
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class TestInsideACeleryTask:
    """Another service's own worker: prefork, on the same Redis, with a FleetClient of its own."""

    def test_a_task_streams_tokens(self, service):
        results = [service.send_task("service.summarise", (seed,)) for seed in (7, 7, 8, 9)]
        texts = [result.get(timeout=60) for result in results]
        assert texts[:2] == [SEED_7, SEED_7]
        assert len(set(texts)) == 3

    def test_a_task_may_hand_the_job_on(self, service, fleet):
        job_id = service.send_task("service.enqueue").get(timeout=60)
        assert fleet.attach(job_id).text() == SEED_7
