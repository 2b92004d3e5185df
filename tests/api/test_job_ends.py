"""Deletes, times to live, deadlines, tenants: what a caller may ask for besides an answer."""

from __future__ import annotations

import contextlib
import time

import pytest

from pagefleet.api import (
    AsyncFleetClient,
    DeadlineExceeded,
    FleetClient,
    JobLost,
    JobNotFound,
    JobState,
    QueueFull,
)
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.contract import keys
from pagefleet.workers.threads.polling import wait_until


def store_of(fleet):
    return fleet._live.store


def traces(fleet, job_id):
    """Every key that has something of a job: its tombstone, which keeps the id alone, does not."""
    redis = store_of(fleet).redis
    tombstone = keys.deleted(job_id)
    return [key for key in redis.keys(f"*{job_id}*") if key != tombstone or redis.get(key) != "1"]


class TestDelete:
    def test_an_ended_job(self, fleet):
        stream = fleet.generate("hello", max_tokens=3)
        stream.result()
        assert wait_until(lambda: store_of(fleet).redis.ttl(keys.job(stream.job_id)) > 0, 60)
        stream.delete()
        assert traces(fleet, stream.job_id) == []
        with pytest.raises(JobNotFound):
            fleet.attach(stream.job_id)
        with pytest.raises(JobNotFound):
            fleet.delete(stream.job_id)

    def test_a_running_job_is_stopped_first(self, fleet):
        stream = fleet.generate("hello", max_tokens=4000)
        next(stream)
        reader = fleet.attach(stream.job_id)
        stream.delete()
        assert wait_until(lambda: traces(fleet, stream.job_id) == [], 60)
        # Who still reads learns that it is over, one way or the other, and does not wait for ever.
        with contextlib.suppress(JobLost):
            assert reader.result().finish_reason == "cancelled"
        (worker,) = fleet.status().workers
        assert wait_until(lambda: fleet.status().workers[0].num_running == 0, 60), worker

    def test_a_queued_job(self, fleet, ghost):
        stream = fleet.generate("hello", model=ghost)
        stream.delete()
        job_keys = [key for key in traces(fleet, stream.job_id) if "unacked" not in key]
        assert job_keys == []
        assert store_of(fleet).redis.zcard(keys.open_jobs(f"pagefleet.{ghost}.interactive")) == 0

    async def test_the_async_client(self, null_stack):
        async with AsyncFleetClient(redis_url=null_stack.redis_url) as fleet:
            stream = await fleet.generate("hello", max_tokens=3)
            await stream.result()
            await stream.delete()
            with pytest.raises(JobNotFound):
                await fleet.delete(stream.job_id)


class TestResultTtl:
    def test_none_while_open_and_its_own_afterwards(self, fleet):
        stream = fleet.generate("hello", max_tokens=200, result_ttl_s=77)
        next(stream)
        redis = store_of(fleet).redis
        assert redis.ttl(keys.job(stream.job_id)) == redis.ttl(keys.log(stream.job_id)) == -1
        stream.result()
        names = [keys.job(stream.job_id), keys.log(stream.job_id), f"celery-task-meta-{stream.job_id}"]
        assert wait_until(lambda: all(0 < redis.ttl(name) <= 77 for name in names), 60)

    def test_the_fleets_where_the_job_has_none(self, fleet):
        stream = fleet.generate("hello", max_tokens=2)
        stream.result()
        redis = store_of(fleet).redis
        assert wait_until(lambda: 3590 < redis.ttl(keys.job(stream.job_id)) <= 3600, 60)


class TestDeadline:
    def test_expired_while_queued_without_any_worker(self, fleet, ghost):
        begun_at = time.monotonic()
        stream = fleet.generate("hello", model=ghost, deadline_s=0.5)
        result = stream.result()
        assert (result.state, result.finish_reason, result.token_ids) == (JobState.FAILED, "deadline", [])
        assert 0.5 <= time.monotonic() - begun_at < 12
        assert store_of(fleet).read(stream.job_id).attempts == 0

    async def test_the_async_client(self, null_stack, ghost):
        async with AsyncFleetClient(redis_url=null_stack.redis_url) as fleet:
            stream = await fleet.generate("hello", model=ghost, deadline_s=0.5)
            assert (await stream.result()).finish_reason == "deadline"

    def test_expired_while_running(self, fleet):
        stream = fleet.generate("hello", max_tokens=4000, deadline_s=0.5)
        result = stream.result()
        assert (result.state, result.finish_reason) == (JobState.FAILED, "deadline")
        assert 0 < len(result.token_ids) < 4000
        assert wait_until(lambda: fleet.status().workers[0].num_running == 0, 60)

    def test_celery_sees_a_failure(self, fleet):
        stream = fleet.generate("hello", max_tokens=4000, deadline_s=0.3)
        stream.result()
        app = make_celery(store_of(fleet).settings)
        with pytest.raises(DeadlineExceeded, match="deadline passed"):
            app.AsyncResult(stream.job_id).get(timeout=60)
        app.close()


class TestTenants:
    def test_one_tenant_cannot_fill_the_queue(self, null_stack, ghost):
        with FleetClient(redis_url=null_stack.redis_url) as fleet:
            store = store_of(fleet)
            (card,) = [card for card in store.cards() if card.name == ghost]
            store.publish_card(card.model_copy(update={"max_tenant_depth": 1}))
            first = fleet.generate("x", model=ghost, tenant="a")
            with pytest.raises(QueueFull, match="1 choices of the tenant 'a'"):
                fleet.generate("x", model=ghost, tenant="a")
            others = [fleet.generate("x", model=ghost, tenant="b"), fleet.generate("x", model=ghost)]
            first.cancel()
            # What has ended does not count.
            fleet.generate("x", model=ghost, tenant="a").cancel()
            for stream in others:
                stream.leave_running()
            for name in store.redis.keys("pf:tenant:pagefleet.ghost*"):
                store.redis.delete(name)
