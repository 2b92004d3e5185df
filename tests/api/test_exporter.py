"""`pagefleet exporter`: what only Redis knows, for Prometheus; and that it says when Redis cannot be read."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from job_store_helpers import FINGERPRINT, LEASE_S, REQUEST, beat, die, running
from job_store_helpers import submit as put
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pagefleet.api import FleetSettings
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.sending import send_message
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import ModelCard, WorkerStatus
from pagefleet.api.operate.exporter import FleetCollector
from pagefleet.api.protocol.job_store import JobStore

CARD = ModelCard(name="m", max_model_len=100, vocab_size=10, max_queue_depth=10, fingerprint=FINGERPRINT)


@pytest.fixture
def registry(store):
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    return registry


@pytest.fixture
def app(store):
    app = make_celery(store.settings)
    yield app
    app.close()


def value(registry, name, **labels):
    return registry.get_sample_value(f"pagefleet_fleet_{name}", labels)


def submit(store, app, job_id, lane="interactive", priority=5):
    queue = keys.queue("m", lane)
    put(store, job_id, queue=queue, request=REQUEST.model_copy(update={"lane": lane, "priority": priority}))
    send_message(app, job_id, queue, priority)


def test_queues_by_model_lane_and_priority(store, registry, app):
    store.publish_card(CARD)
    for index, (lane, priority) in enumerate(
        [("interactive", 5), ("interactive", 5), ("interactive", 9), ("batch", 0)]
    ):
        submit(store, app, f"j{index}", lane, priority)
    assert value(registry, "queue_depth", model="m", lane="interactive", priority="5") == 2
    assert value(registry, "queue_depth", model="m", lane="interactive", priority="9") == 1
    assert value(registry, "queue_depth", model="m", lane="interactive", priority="0") == 0
    assert value(registry, "queue_depth", model="m", lane="batch", priority="0") == 1
    assert value(registry, "open_jobs", model="m", lane="interactive") == 3
    assert value(registry, "source_up") == 1


def holds(store, worker_id, job_ids):
    status = WorkerStatus(worker_id=worker_id, model="m", host="h", pid=1, started_at=0.0, job_ids=job_ids)
    store.beat(status, LEASE_S)


def test_the_age_of_the_oldest_job_that_no_worker_holds(store, registry, app):
    store.publish_card(CARD)
    oldest = functools.partial(value, registry, "oldest_queued_seconds", model="m", lane="interactive")
    assert oldest() == 0
    for index in range(3):
        submit(store, app, f"j{index}")
    ledger, now_ms = keys.open_jobs("pagefleet.m.interactive"), time.time() * 1000
    for index, age_s in enumerate((500, 100, 50)):
        store.redis.zadd(ledger, {f"j{index}": now_ms - age_s * 1000})
    assert oldest() == pytest.approx(500, abs=5)
    # One that runs does not wait; one whose worker died does.
    holds(store, "w1", ["j0"])
    holds(store, "w2", ["j1"])
    assert oldest() == pytest.approx(50, abs=5)
    die(store, "w2")
    assert oldest() == pytest.approx(100, abs=5)
    assert value(registry, "oldest_queued_seconds", model="m", lane="batch") == 0


def test_the_oldest_stands_behind_many_that_run(store, registry):
    """More than a page of running jobs is older."""
    store.publish_card(CARD)
    names = [f"j{index:03}" for index in range(250)]
    for name in names:
        put(store, name, max_depth=1000)
    holds(store, "w1", names[:240])
    ages = dict.fromkeys(names[:240], 1.0) | {names[240]: time.time() * 1000 - 7000}
    store.redis.zadd(keys.open_jobs("pagefleet.m.interactive"), ages)
    assert 6 < value(registry, "oldest_queued_seconds", model="m", lane="interactive") < 60


def test_workers_and_dead_letters(store, registry):
    store.publish_card(CARD)
    assert value(registry, "workers", model="m") == 0
    beat(store, "w1")
    assert value(registry, "workers", model="m") == 1
    assert value(registry, "dead_letters") == 0
    running(store)
    store.redis.hset(keys.job("j"), "state", "nonsense")
    store.condemn("j", "pagefleet.m.interactive")
    assert value(registry, "dead_letters") == 1


def test_a_server_that_is_away_leaves_no_old_figures():
    store = JobStore(FleetSettings(redis_url="redis://127.0.0.1:1/0"))
    registry = CollectorRegistry()
    registry.register(FleetCollector(store))
    assert [family.name for family in registry.collect()] == [
        "pagefleet_fleet_source_up",
        "pagefleet_fleet_source_read_seconds",
    ]
    assert value(registry, "source_up") == 0


def test_the_command(redis_server, store):
    store.publish_card(CARD)
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "exporter", "--port", "0"]
    command += ["--redis-url", redis_server.url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stderr.readline())[0]
        with urllib.request.urlopen(url, timeout=10) as reply:
            text = reply.read().decode()
        samples = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        assert samples["pagefleet_fleet_source_up"] == 1
        assert samples["pagefleet_fleet_workers"] == 0
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
