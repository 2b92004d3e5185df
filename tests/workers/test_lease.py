"""A lease is valid as long as the engine loop runs and the server answers."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from pagefleet.api.config.settings import FleetSettings
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import RedisUnavailable
from pagefleet.api.contract.messages import WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.testing import fake_card
from pagefleet.workers.recovery.lease import Lease
from pagefleet.workers.threads.polling import wait_until

LEASE_S = 1.0


def status() -> WorkerStatus:
    return WorkerStatus(worker_id="w1", model="m", host="h", pid=1, started_at=0.0)


def make_lease(store: JobStore, file: Path | None = None) -> Lease:
    return Lease(store, LEASE_S, fake_card("m"), status, is_retrying=lambda: False, file=file)


def test_a_turning_loop_keeps_the_lease(store):
    lease = make_lease(store)
    lease.start()
    for _ in range(16):
        lease.tick()
        time.sleep(LEASE_S / 8)
        assert lease.valid
        assert store.redis.exists(keys.lease("w1"))
    lease.release()
    assert not lease.valid
    assert not store.redis.exists(keys.lease("w1"))


def test_a_wedged_loop_loses_it_although_the_process_lives(store):
    lease = make_lease(store)
    lease.start()
    assert wait_until(lambda: not lease.valid, 60)
    assert wait_until(lambda: not store.redis.exists(keys.lease("w1")), 60)
    # The loop runs again, and the lease is valid again.
    assert lease.num_late_beats == 0
    assert lease.age_s > LEASE_S
    assert wait_until(lambda: lease.tick() or lease.valid, 60)
    assert lease.num_late_beats == 1
    lease.release()


def test_its_file_is_dated_to_its_end(store, tmp_path):
    """The health check of a container reads the file's date: in the future while the lease is valid."""
    file = tmp_path / "lease"

    def ends_in_s():
        return file.stat().st_mtime - time.time()

    lease = make_lease(store, file)
    lease.start()
    assert 0 < ends_in_s() <= LEASE_S
    # The loop is wedged, then runs again, then the worker stops.
    assert wait_until(lambda: ends_in_s() < 0, 60)
    assert wait_until(lambda: lease.tick() or ends_in_s() > 0, 60)
    lease.release()
    assert not file.exists()


def test_a_file_that_cannot_be_written_costs_no_lease(store, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        lease = make_lease(store, tmp_path / "absent" / "lease")
        lease.start()
    assert lease.valid
    assert "lease_file" in caplog.text
    lease.release()


def test_the_worker_stays_known_as_a_tombstone(store):
    lease = make_lease(store)
    lease.start()
    lease.release()
    assert store.redis.zscore(keys.WORKERS, "w1") is not None
    assert store.workers() == []


def test_without_a_server_there_is_no_lease():
    away = JobStore(FleetSettings(redis_url="redis://127.0.0.1:1/0"))
    with pytest.raises(RedisUnavailable, match="No answer from Redis"):
        make_lease(away).start()
