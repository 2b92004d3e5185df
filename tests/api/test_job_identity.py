"""Which request an id stands for: another one is no attach, and what was deleted is not sent again."""

from __future__ import annotations

import asyncio
import time

import pytest
from job_store_helpers import CHANNEL, QUEUE, REQUEST, submit

from pagefleet.api import AsyncFleetClient, FleetClient, JobDeleted, JobExists
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import JobLost
from pagefleet.api.protocol.operation_types import Limits
from pagefleet.api.protocol.operations import submit as submit_call
from pagefleet.api.testing import InMemoryFleet
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

LIMITS = Limits(10, 10)


def send(store, job_id, **options):
    return store.run(submit_call(job_id, REQUEST, queue=QUEUE, channel=CHANNEL, limits=LIMITS, **options))


class TestDeleted:
    def test_a_deleted_job_is_not_sent_again_and_a_fresh_submit_is_taken(self, store):
        assert submit(store, "j").created
        store.delete("j", QUEUE)
        store.close("j", QUEUE)
        assert store.redis.exists(keys.job("j"), keys.log("j")) == 0
        assert send(store, "j", again=True).is_deleted
        assert store.redis.exists(keys.job("j")) == 0
        assert send(store, "j").created
        # The tombstone was the former job's: this one may be sent again.
        store.redis.delete(keys.job("j"))
        assert send(store, "j", again=True).created

    @pytest.mark.parametrize(("ttl_s", "kept_s"), [(None, 3600), (60, 60), (10**6, 86400)])
    def test_the_tombstone_holds_the_id_alone_as_long_as_the_result_would_have_been_kept(
        self, store, ttl_s, kept_s
    ):
        request = REQUEST.model_copy(update={"result_ttl_s": ttl_s})
        store.submit("j", request, queue=QUEUE, channel="", limits=LIMITS)
        store.delete("j", QUEUE)
        store.delete("j", QUEUE)  # the first one's reply was lost
        assert store.redis.get(keys.deleted("j")) == "1"
        assert kept_s - 5 < store.redis.ttl(keys.deleted("j")) <= kept_s

    def test_a_reader_that_missed_the_end_hears_of_it(self, null_stack, fleet, ghost):
        """Its events were lost, and another process deletes the job meanwhile."""
        stream = fleet.generate("a secret", model=ghost, detached=True)
        stream._source._stop_listening()
        with FleetClient(redis_url=null_stack.redis_url) as other:
            other.delete(stream.job_id)
        with pytest.raises(JobDeleted, match="was deleted") as raised:
            stream.result()
        assert isinstance(raised.value, JobLost)
        assert fleet._live.store.read(stream.job_id) is None

    def test_so_does_an_asynchronous_one(self, null_stack, fleet, ghost):
        async def read():
            async with AsyncFleetClient(redis_url=null_stack.redis_url) as reader:
                stream = await reader.generate("a secret", model=ghost, detached=True)
                stream._source._stop_listening()
                await asyncio.to_thread(fleet.delete, stream.job_id)
                with pytest.raises(JobDeleted):
                    await stream.result()
                assert await reader._live.store.read(stream.job_id) is None

        asyncio.run(read())

    def test_the_message_of_a_deleted_job_makes_no_new_one(self, null_stack, fleet):
        """A bare message carries its request: it comes to a worker after the job was deleted."""
        app, job_id = fleet._live.app, f"deleted-{time.time()}"
        fleet._live.store.redis.set(keys.deleted(job_id), "1", ex=60)
        kwargs = {"model": "null", "prompt": "x", "max_tokens": 3}
        app.send_task(
            keys.GENERATE_TASK, kwargs=kwargs, task_id=job_id, queue="pagefleet.null.interactive",
            ignore_result=True,
        )  # fmt: skip
        assert wait_until(lambda: app.AsyncResult(job_id).state == "FAILURE", 60)
        assert "was deleted" in str(app.AsyncResult(job_id).result)
        assert fleet._live.store.read(job_id) is None


class TestOtherRequest:
    def test_the_script_compares_the_hash_where_both_have_one(self, store):
        assert send(store, "j", asked="one").created
        assert send(store, "j", asked="one").exists
        assert send(store, "j").exists
        assert send(store, "j", asked="two").is_other
        assert send(store, "j", asked="two", again=True).is_other
        # As an older version wrote it.
        store.redis.hdel(keys.job("j"), "asked")
        assert send(store, "j", asked="two").exists

    @pytest.mark.parametrize(
        "other", [{"tenant": "b"}, {"tenant": None}, {"prompt": "y"}, {"seed": 1}, {"max_tokens": 6}], ids=str
    )
    def test_another_tenant_or_request_does_not_read_it(self, fleet, other):
        job_id, asked = f"order-{time.time()}", {"prompt": "x", "tenant": "a", "max_tokens": 5}
        first = fleet.generate(job_id=job_id, **asked)
        assert fleet.generate(job_id=job_id, **asked).result() == first.result()
        # What is a default, and by which name the model goes, is no difference.
        assert fleet.generate(job_id=job_id, model="null", priority=5, **asked).result() == first.result()
        with pytest.raises(JobExists, match="another request or tenant") as raised:
            fleet.generate(job_id=job_id, **{**asked, **other})
        assert (raised.value.param, raised.value.job_id) == ("job_id", job_id)

    def test_in_asyncio_and_in_the_fake_too(self, null_stack):
        async def ask():
            async with AsyncFleetClient(redis_url=null_stack.redis_url) as fleet:
                job_id = f"order-{time.time()}"
                await (await fleet.generate("x", job_id=job_id, tenant="a", max_tokens=2)).result()
                with pytest.raises(JobExists):
                    await fleet.generate("x", job_id=job_id, tenant="b", max_tokens=2)

        asyncio.run(ask())
        fake = InMemoryFleet()
        fake.generate("x", job_id="j", tenant="a")
        assert fake.generate("x", job_id="j", tenant="a").job_id == "j"
        with pytest.raises(JobExists):
            fake.generate("x", job_id="j", tenant="b")

    def test_a_stream_whose_job_the_server_forgot_sends_it_again(self, fleet):
        stream = fleet.generate("x", max_tokens=400, seed=3, tenant="a")
        next(stream)
        fleet._live.store.redis.delete(keys.job(stream.job_id), keys.log(stream.job_id))
        assert stream.result().token_ids == [null_token(3, 0, at) for at in range(400)]
