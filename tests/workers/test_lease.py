"""A lease lives as long as the engine loop turns and the server hears of it."""

from __future__ import annotations

import time

import pytest

from pagefleet.api import keys
from pagefleet.api.errors import RedisUnavailable
from pagefleet.api.job_store import JobStore
from pagefleet.api.messages import WorkerStatus
from pagefleet.api.settings import FleetSettings
from pagefleet.api.testing import fake_card
from pagefleet.workers.engine_loop import wait_until
from pagefleet.workers.lease import Lease

LEASE_S = 0.6


def status() -> WorkerStatus:
    return WorkerStatus(worker_id="w1", model="m", host="h", pid=1, started_at=0.0)


def make_lease(store: JobStore) -> Lease:
    return Lease(store, LEASE_S, fake_card("m"), status, is_waiting=lambda: False)


def test_a_turning_loop_keeps_the_lease(store):
    lease = make_lease(store)
    lease.start()
    for _ in range(20):
        lease.tick()
        time.sleep(LEASE_S / 8)
        assert lease.valid
        assert store.redis.exists(keys.lease("w1"))
    lease.give_up()
    assert not lease.valid
    assert not store.redis.exists(keys.lease("w1"))


def test_a_wedged_loop_loses_it_although_the_process_lives(store):
    lease = make_lease(store)
    lease.start()
    assert wait_until(lambda: not lease.valid, 3 * LEASE_S)
    assert wait_until(lambda: not store.redis.exists(keys.lease("w1")), LEASE_S)
    # It turns again: the lease comes back.
    assert lease.num_late_beats == 0
    assert lease.age_s > LEASE_S
    assert wait_until(lambda: lease.tick() or lease.valid, 3 * LEASE_S)
    assert lease.num_late_beats == 1
    lease.give_up()


def test_the_worker_stays_known_as_a_tombstone(store):
    lease = make_lease(store)
    lease.start()
    lease.give_up()
    assert store.redis.zscore(keys.WORKERS, "w1") is not None
    assert store.workers() == []


def test_without_a_server_there_is_no_lease():
    away = JobStore(FleetSettings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(RedisUnavailable, match="No answer from Redis"):
        make_lease(away).start()
