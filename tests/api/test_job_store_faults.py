"""JobStore under faults: deaths and who is blamed, refusals, deletes, deadlines, tenants, a full server."""

from __future__ import annotations

import json
import time

import pytest
from job_store_helpers import (
    CHANNEL,
    FINGERPRINT,
    LEASE_S,
    QUEUE,
    REQUEST,
    beat,
    claim,
    die,
    everything,
    item,
    running,
    step,
    submit,
)  # fmt: skip

from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.broker.closing import JobCloser
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import StorageFull
from pagefleet.api.contract.messages import EndedEvent, JobState, ModelCard, WorkerStatus
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.api.protocol.operation_types import ClaimVerdict, DeleteVerdict, Limits, Submitted
from pagefleet.workers.threads.polling import wait_until

OTHER_WEIGHTS = FINGERPRINT.model_copy(update={"weights": "w2"})
OTHER_TOKENIZER = FINGERPRINT.model_copy(update={"tokenizer": "t2"})
OTHER_BACKEND = FINGERPRINT.model_copy(update={"backend": "b2"})


def fields_of(store, job_id="j"):
    return store.redis.hgetall(keys.job(job_id))


def claim_with(store, fingerprint, worker_id, job_id="j"):
    beat(store, worker_id)
    (reply,) = store.claim([job_id], worker_id, fingerprint.model_dump_json())
    return reply


def time_comes(store, job_id="j"):
    store.redis.hset(keys.job(job_id), "not_before", "1")


def submit_for(store, tenant, job_id, *, max_tenant_depth):
    request = REQUEST.model_copy(update={"tenant": tenant})
    return store.submit(job_id, request, queue=QUEUE, channel=CHANNEL, limits=Limits(10, max_tenant_depth))


def next_worker(store, dead, worker_id, job_id="j"):
    """One worker dies and the next claims."""
    die(store, dead)
    beat(store, worker_id)
    return claim(store, job_id, worker_id)


def killed_in_first_prefill(store, num_times, job_id="j"):
    """A job that kills each worker that begins it; returns the last claim."""
    submit(store, job_id)
    beat(store, "w0")
    reply = claim(store, job_id, "w0")
    for death in range(num_times):
        assert store.mark(f"w{death}", {job_id: reply.epoch}) == set()
        reply = next_worker(store, f"w{death}", f"w{death + 1}", job_id)
    return reply


class TestBlame:
    def test_the_only_suspect_is_blamed(self, store):
        reply = killed_in_first_prefill(store, 1)
        assert (reply.verdict, reply.solo) == (ClaimVerdict.CLAIMED, False)
        assert (fields_of(store)["blame"], fields_of(store)["fruitless"]) == ("1", "1")

    def test_a_job_whose_first_prefill_had_not_begun_is_not_blamed(self, store):
        running(store)
        assert next_worker(store, "w1", "w2").verdict is ClaimVerdict.CLAIMED
        assert "blame" not in fields_of(store)
        assert fields_of(store)["fruitless"] == "1"

    def test_a_job_that_had_a_token_is_not_blamed(self, store):
        running(store)
        store.mark("w1", {"j": 1})
        step(store, item(0, 1))
        assert store.redis.smembers(keys.suspects("w1")) == set()
        next_worker(store, "w1", "w2")
        assert "blame" not in fields_of(store)

    def test_of_several_suspects_each_is_run_again_alone(self, store):
        running(store, "a")
        running(store, "b")
        store.mark("w1", {"a": 1, "b": 1})
        assert store.redis.smembers(keys.suspects("w1")) == {"a", "b"}
        assert store.redis.ttl(keys.suspects("w1")) > 0
        assert [next_worker(store, "w1", "w2", job_id).solo for job_id in "ab"] == [True, True]
        assert ["blame" in fields_of(store, job_id) for job_id in "ab"] == [False, False]

    def test_a_solo_job_is_blamed_in_company_too(self, store):
        """Only what has tokens already runs beside it, and others' marks on a dead worker's list are old."""
        running(store, "a")
        running(store, "b")
        store.mark("w1", {"a": 1, "b": 1})
        epoch = next_worker(store, "w1", "w2", "a").epoch
        running(store, "c", "w2")
        store.mark("w2", {"a": epoch, "c": 1})
        assert next_worker(store, "w2", "w3", "a").solo
        assert fields_of(store, "a")["blame"] == "1"

    def test_a_cancelled_suspect_leaves_no_other_alone(self, store):
        """Were it taken off the dead worker's list, the innocent one would be blamed in its place."""
        running(store, "poison")
        running(store, "innocent")
        store.mark("w1", {"poison": 1, "innocent": 1})
        die(store, "w1")
        store.cancel("poison")
        assert next_worker(store, "w1", "w2", "innocent").solo
        assert "blame" not in fields_of(store, "innocent")

    @pytest.mark.parametrize("how", ["token", "empty answer", "release", "end"])
    def test_whoever_left_the_first_prefill_is_no_company(self, store, how):
        running(store, "a")
        running(store, "b")
        store.mark("w1", {"a": 1, "b": 1})
        if how == "token":
            step(store, item(0, 1, job_id="a"))
        elif how == "empty answer":
            step(store, item(0, 0, job_id="a", reason="stop"))
        elif how == "release":
            store.release("a", "w1", 1)
        else:
            store.end("a", "w1", 1, JobState.FAILED)
        assert not next_worker(store, "w1", "w2", "b").solo
        assert fields_of(store, "b")["blame"] == "1"

    def test_the_third_blame_is_the_end(self, store, ear):
        assert killed_in_first_prefill(store, 2).verdict is ClaimVerdict.CLAIMED
        assert store.dead_letters() == []
        store.mark("w2", {"j": 3})
        assert next_worker(store, "w2", "w3").verdict is ClaimVerdict.ENDED
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.DEAD, "error")
        assert (record.error.code, "3 workers died" in record.error.message) == ("job_dead", True)
        assert store.dead_letters() == ["j"]
        assert ear.events()[-1] == (CHANNEL, "j", record.ended_event())
        assert claim(store, "j", "w3").verdict is ClaimVerdict.FINAL

    def test_deaths_without_a_token_between_them_end_a_job_that_nobody_blames(self, store):
        running(store)
        for death in range(1, 10):
            reply = next_worker(store, f"w{death}", f"w{death + 1}")
            assert (reply.verdict, reply.solo) == (ClaimVerdict.CLAIMED, death == 9)  # the last try is alone
        assert next_worker(store, "w10", "w11").verdict is ClaimVerdict.ENDED
        record = store.read("j")
        assert (record.state, "10 workers in a row" in record.error.message) == (JobState.DEAD, True)
        assert store.dead_letters() == ["j"]

    def test_a_token_makes_the_deaths_before_it_fruitful(self, store):
        running(store)
        for death in range(1, 5):
            epoch = next_worker(store, f"w{death}", f"w{death + 1}").epoch
        assert fields_of(store)["fruitless"] == "4"
        step(store, item(0, 1, epoch=epoch), worker_id="w5")
        assert fields_of(store)["fruitless"] == "0"
        next_worker(store, "w5", "w6")
        assert fields_of(store)["fruitless"] == "1"

    @pytest.mark.parametrize("how", ["released", "left", "reclaimed"])
    def test_without_a_death_nothing_is_counted(self, store, how):
        running(store)
        store.mark("w1", {"j": 1})
        if how == "reclaimed":
            assert claim(store).epoch == 2
        else:
            store.release("j", "w1", 1)
            store.delete_lease("w1") if how == "left" else None
            beat(store, "w2")
            assert claim(store, worker_id="w2").epoch == 2
        assert "fruitless" not in fields_of(store)
        assert "blame" not in fields_of(store)

    def test_a_cancel_or_a_deadline_goes_before_blame(self, store):
        killed_in_first_prefill(store, 2)
        store.mark("w2", {"j": 3})
        store.redis.hset(keys.job("j"), "cancel", "1")
        assert next_worker(store, "w2", "w3").verdict is ClaimVerdict.ENDED
        assert store.read("j").state is JobState.CANCELLED
        assert store.dead_letters() == []

    def test_a_mark_of_a_lost_job_makes_no_suspect(self, store):
        running(store)
        next_worker(store, "w1", "w2")
        assert store.mark("w1", {"j": 1}) == {"j"}
        assert store.redis.smembers(keys.suspects("w1")) == set()


class TestDeadLetters:
    def test_what_expired_is_not_listed_and_leaves_the_list(self, store):
        for job_id in ("kept", "gone"):
            running(store, job_id)
            store.end(job_id, "w1", 1, JobState.DEAD)
            store.redis.zadd(keys.DEAD, {job_id: 1})
        store.redis.delete(keys.job("gone"))
        assert store.dead_letters() == ["kept"]
        assert store.redis.zrange(keys.DEAD, 0, -1) == ["kept"]

    def test_they_are_kept_longer_than_other_ends(self, store):
        settings = store.settings
        assert settings.dead_letter_ttl_s > settings.result_ttl_s
        for job_id, state in (("dead", JobState.DEAD), ("failed", JobState.FAILED)):
            running(store, job_id)
            step(store, item(0, 1, job_id=job_id))
            store.end(job_id, "w1", 1, state)
            store.close(job_id, QUEUE)
        for key in (keys.job, keys.log):
            assert settings.result_ttl_s - 60 < store.redis.ttl(key("failed")) <= settings.result_ttl_s
            assert 0 <= settings.dead_letter_ttl_s - store.redis.ttl(key("dead")) < 60


class TestFingerprints:
    @pytest.mark.parametrize("other", [OTHER_WEIGHTS, OTHER_TOKENIZER], ids=["weights", "tokenizer"])
    def test_a_job_with_tokens_is_not_gone_on_with_by_another_model(self, store, other):
        running(store)
        step(store, item(0, 1))
        die(store, "w1")
        reply = claim_with(store, other, "w2")
        assert reply.verdict is ClaimVerdict.REFUSED
        fields = fields_of(store)
        assert (fields["state"], fields["epoch"], fields["refused"]) == ("Q", "1", reply.reason)
        assert json.loads(fields["fingerprint"]) == FINGERPRINT.model_dump()
        again = claim_with(store, FINGERPRINT, "w3")
        assert (again.verdict, again.num_tokens) == (ClaimVerdict.CLAIMED, (1,))
        assert "refused" not in fields_of(store)

    def test_the_death_counts_once_however_often_it_is_refused(self, store):
        running(store)
        step(store, item(0, 1))
        die(store, "w1")
        for worker_id in ("w2", "w3", "w4"):
            assert claim_with(store, OTHER_WEIGHTS, worker_id).verdict is ClaimVerdict.REFUSED
            time_comes(store)
        assert fields_of(store)["fruitless"] == "1"

    def refused(self, store):
        running(store)
        step(store, item(0, 1))
        store.release("j", "w1", 1)
        return claim_with(store, OTHER_WEIGHTS, "w2")

    def test_a_refused_job_waits_twice_as_long_each_time_and_no_worker_is_asked_before(self, store):
        waits = [self.refused(store).retry_in_s]
        assert claim_with(store, OTHER_WEIGHTS, "w3").verdict is ClaimVerdict.EARLY
        for _ in range(8):
            assert not store.due("j")
            time_comes(store)
            assert store.due("j")
            waits.append(claim_with(store, OTHER_WEIGHTS, "w2").retry_in_s)
        for wait, least in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
            assert least <= wait <= 1.25 * least
        # It keeps its place in the ledger and its age, and waits no more once a worker has it.
        fields = fields_of(store)
        assert store.redis.zscore(keys.open_jobs(QUEUE), "j") == int(fields["enqueued_at"])
        assert claim_with(store, FINGERPRINT, "w3").verdict is ClaimVerdict.CLAIMED
        assert not {"refused", "refused_until", "backoff", "not_before"} & fields_of(store).keys()

    def test_one_that_a_living_worker_can_take_is_due_at_once(self, store):
        self.refused(store)
        (job,) = store.open_jobs(QUEUE)
        assert job.waits_for == (FINGERPRINT.weights, FINGERPRINT.tokenizer)
        assert not store.due("j")
        assert store.due("j", has_worker=True)
        assert not store.due("j", has_worker=True)

    def test_jobs_that_were_refused_together_are_sent_apart(self, store):
        waits = set()
        for index in range(8):
            job_id = f"j{index}"
            running(store, job_id)
            step(store, item(0, 1, job_id=job_id))
            store.release(job_id, "w1", 1)
            waits.add(claim_with(store, OTHER_WEIGHTS, "w2", job_id).retry_in_s)
        assert len(waits) > 4

    @pytest.mark.parametrize("limit", ["deadline", "refused_until"])
    def test_at_its_limit_it_is_a_dead_letter_and_keeps_its_tokens(self, store, limit):
        self.refused(store)
        assert not store.expire("j")
        store.redis.hset(keys.job("j"), limit, "1")
        assert store.expire("j")
        record = store.read("j")
        assert (record.state, record.finish_reason(0), record.num_tokens) == (JobState.DEAD, "error", [1])
        assert "begun with other weights" in record.error.message
        assert ("before its deadline" in record.error.message) == (limit == "deadline")
        assert store.dead_letters() == ["j"]

    @pytest.mark.parametrize("limit", ["deadline", "refused_until"])
    def test_a_claim_finds_the_limit_too(self, store, limit):
        self.refused(store)
        time_comes(store)
        store.redis.hset(keys.job("j"), limit, "1")
        assert claim_with(store, OTHER_WEIGHTS, "w2").verdict is ClaimVerdict.ENDED
        assert (store.read("j").state, store.dead_letters()) == (JobState.DEAD, ["j"])

    def test_the_limit_counts_from_the_first_refusal_and_is_a_setting(self, store):
        assert store.settings.refused_ttl_s == 24 * 3600
        self.refused(store)
        first = fields_of(store)["refused_until"]
        assert 0 <= time.time() + 24 * 3600 - int(first) / 1000 < 60
        time.sleep(0.01)
        time_comes(store)
        claim_with(store, OTHER_WEIGHTS, "w2")
        assert fields_of(store)["refused_until"] == first

    def test_a_job_without_tokens_may_start_on_either(self, store):
        running(store)
        die(store, "w1")
        assert claim_with(store, OTHER_WEIGHTS, "w2").verdict is ClaimVerdict.CLAIMED

    def test_another_backend_goes_on_and_both_are_named_in_order(self, store):
        running(store)
        step(store, item(0, 1))
        assert store.read("j").fingerprints == [FINGERPRINT]
        die(store, "w1")
        assert claim_with(store, OTHER_BACKEND, "w2").verdict is ClaimVerdict.CLAIMED
        die(store, "w2")
        assert claim_with(store, OTHER_BACKEND, "w3").verdict is ClaimVerdict.CLAIMED  # not listed twice
        assert store.read("j").fingerprints == [FINGERPRINT, OTHER_BACKEND]
        assert store.read("j").result().fingerprints == [FINGERPRINT, OTHER_BACKEND]


class TestDelete:
    def test_a_closed_job_is_gone_at_once(self, store):
        running(store)
        step(store, item(0, 1, reason="stop"))
        store.close("j", QUEUE)
        assert store.delete("j", QUEUE) is DeleteVerdict.DELETED
        assert everything(store).keys() == {keys.lease("w1"), keys.WORKERS, keys.deleted("j")}
        assert store.delete("j", QUEUE) is DeleteVerdict.MISSING

    def test_a_dead_letter_leaves_the_list_too(self, store):
        killed_in_first_prefill(store, 3)
        store.close("j", QUEUE)
        assert store.delete("j", QUEUE) is DeleteVerdict.DELETED
        assert store.redis.zrange(keys.DEAD, 0, -1) == []

    def test_a_queued_job_is_cancelled_and_close_removes_it(self, store, ear):
        submit(store)
        assert store.delete("j", QUEUE) is DeleteVerdict.ENDED
        assert ear.events() == [
            (CHANNEL, "j", EndedEvent(state=JobState.CANCELLED, num_tokens=[0], finish_reasons=["cancelled"]))
        ]
        assert store.close("j", QUEUE) == "closed"
        assert everything(store) == {keys.deleted("j"): "1"}

    def test_a_running_job_goes_on_until_its_worker_has_heard(self, store):
        running(store)
        step(store, item(0, 1))
        assert store.delete("j", QUEUE) is DeleteVerdict.FLAGGED
        assert step(store, item(1, 1)).status == "cancel"
        store.end("j", "w1", 1, JobState.CANCELLED, reason="cancelled")
        assert store.close("j", QUEUE) == "closed"
        assert everything(store).keys() == {keys.lease("w1"), keys.WORKERS, keys.deleted("j")}

    def test_a_job_that_ended_but_was_not_closed_is_removed_by_close(self, store):
        running(store)
        step(store, item(0, 1, reason="stop"))
        assert store.delete("j", QUEUE) is DeleteVerdict.ENDED
        assert store.read("j").state is JobState.DONE
        store.close("j", QUEUE)
        assert store.read("j") is None

    def test_a_given_up_job_is_not_kept_for_its_ttl_as_a_dead_letter(self, store):
        killed_in_first_prefill(store, 3)
        assert store.delete("j", QUEUE) is DeleteVerdict.ENDED
        store.close("j", QUEUE)
        assert store.read("j") is None


class TestExpire:
    def late(self, store):
        store.redis.hset(keys.job("j"), "deadline", "1")

    def test_a_waiting_job_past_its_deadline_has_ended(self, store, ear):
        submit(store)
        self.late(store)
        assert store.expire("j") is True
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.FAILED, "deadline")
        assert ear.events() == [(CHANNEL, "j", record.ended_event())]
        assert store.redis.zscore(keys.open_jobs(QUEUE), "j") is not None  # until CLOSE

    def test_what_runs_ended_waits_or_is_not_there_stays(self, store):
        assert store.expire("j") is False
        submit(store)
        assert store.expire("j") is False  # without a deadline
        store.redis.hset(keys.job("j"), "deadline", "99999999999999")
        assert store.expire("j") is False
        self.late(store)
        store.cancel("j")
        before = everything(store)
        assert store.expire("j") is False
        assert everything(store) == before

    def test_a_running_job_hears_it_from_its_step(self, store):
        running(store)
        self.late(store)
        before = everything(store)
        assert store.expire("j") is False
        assert everything(store) == before
        assert step(store, item(0, 1)).status == "deadline"


class TestTenants:
    def test_a_tenant_has_its_share_of_the_queue(self, store):
        assert submit_for(store, "t", "a", max_tenant_depth=2).created
        assert submit_for(store, "t", "b", max_tenant_depth=2).created
        before = everything(store)
        assert submit_for(store, "t", "c", max_tenant_depth=2) == Submitted(False, None, 2)
        assert everything(store) == before
        assert submit_for(store, "other", "d", max_tenant_depth=2).created
        assert submit(store, "e").created

    def test_the_same_id_again_is_found_before_the_share_is_counted(self, store):
        submit_for(store, "t", "a", max_tenant_depth=1)
        assert submit_for(store, "t", "a", max_tenant_depth=1) == Submitted(False, None, None)

    def test_close_gives_the_place_back(self, store):
        submit_for(store, "t", "a", max_tenant_depth=1)
        store.cancel("a")
        store.close("a", QUEUE)
        assert not store.redis.exists(keys.tenant_jobs(QUEUE, "t"))
        assert submit_for(store, "t", "b", max_tenant_depth=1).created

    def test_a_hundred_long_jobs_do_not_hide_what_has_gone(self, store):
        """A submit that finds the ledger full looks at a hundred of its jobs, another time at others."""
        for index in range(150):
            request = REQUEST.model_copy(update={"tenant": "t"})
            store.submit(f"j{index}", request, queue=QUEUE, channel=CHANNEL, limits=Limits(1000, 150))
        store.redis.delete(keys.job("j140"))

        def submits_one_more():
            request = REQUEST.model_copy(update={"tenant": "t"})
            limits = Limits(1000, 150)
            return store.submit("more", request, queue=QUEUE, channel=CHANNEL, limits=limits).created

        assert wait_until(submits_one_more, 60, poll_s=0.001)

    @pytest.mark.parametrize("how", ["ended", "forgotten"])
    def test_a_full_ledger_is_cleared_of_what_has_gone(self, store, how):
        """Nobody sweeps it: a job that the server forgot would take its tenant's place for ever."""
        submit_for(store, "t", "a", max_tenant_depth=1)
        store.cancel("a") if how == "ended" else store.redis.delete(keys.job("a"))
        assert submit_for(store, "t", "b", max_tenant_depth=1).created
        assert store.redis.zrange(keys.tenant_jobs(QUEUE, "t"), 0, -1) == ["b"]

    def test_a_full_queue_leaves_no_trace_in_the_tenants_ledger(self, store):
        for job_id in "abcdefghij":
            submit(store, job_id)
        assert submit_for(store, "t", "k", max_tenant_depth=5) == Submitted(False, 10, None)
        assert not store.redis.exists(keys.tenant_jobs(QUEUE, "t"))

    def submit_choices(self, store, job_id, n, most):
        sampling = REQUEST.sampling.model_copy(update={"n": n})
        request = REQUEST.model_copy(update={"tenant": "t", "sampling": sampling})
        return store.submit(job_id, request, queue=QUEUE, channel=CHANNEL, limits=Limits(100, most))

    def test_a_job_takes_a_place_for_each_choice(self, store):
        assert self.submit_choices(store, "a", 3, 4).created
        assert self.submit_choices(store, "b", 2, 4) == Submitted(False, None, 3)
        assert self.submit_choices(store, "b", 1, 4).created
        store.cancel("a")
        store.close("a", QUEUE)
        assert store.redis.zrange(keys.tenant_jobs(QUEUE, "t"), 0, -1) == ["b"]
        assert self.submit_choices(store, "c", 3, 4).created
        assert self.submit_choices(store, "d", 128, 127) == Submitted(False, None, 4)

    def test_condemn_gives_back_the_places_of_all_choices(self, store):
        """The number of choices may be what cannot be read, so CLOSE cannot know the places."""
        assert self.submit_choices(store, "a", 3, 4).created
        store.redis.hset(keys.job("a"), "num_choices", "many")
        assert store.condemn("a", QUEUE)
        store.close("a", QUEUE)
        assert not store.redis.exists(keys.tenant_jobs(QUEUE, "t"))
        assert self.submit_choices(store, "b", 4, 4).created

    def test_the_places_of_a_job_that_has_gone_are_cleared(self, store):
        self.submit_choices(store, "a", 128, 128)
        store.redis.delete(keys.job("a"))
        assert wait_until(lambda: self.submit_choices(store, "b", 128, 128).created, 60, poll_s=0.001)
        assert store.redis.zcard(keys.tenant_jobs(QUEUE, "t")) == 128


class TestStoredBytes:
    def submit(self, store, job_id, most=10**9, tenant="t", **fields):
        request = REQUEST.model_copy(update={"tenant": tenant, **fields})
        limits = Limits(10, 10, most)
        return store.submit(job_id, request, queue=QUEUE, channel=CHANNEL, limits=limits)

    def total(self, store):
        """What counts, which must be the sum of what the jobs say."""
        places = store.redis.zrange(keys.stored_jobs("t"), 0, -1)
        total = int(store.redis.hget(keys.stored_bytes("t"), "total") or 0)
        assert sum(int(place.split()[1]) for place in places) == total
        return total

    def reserved(self, store):
        """Of one job."""
        self.submit(store, "probe")
        total = self.total(store)
        store.delete("probe", QUEUE)
        store.close("probe", QUEUE)
        assert everything(store).keys() == {keys.deleted("probe")}
        return total

    def test_a_tenant_may_store_so_much(self, store):
        one = self.reserved(store)
        assert self.submit(store, "a", 2 * one).created
        assert self.submit(store, "b", 2 * one).created
        before = everything(store)
        assert self.submit(store, "c", 2 * one) == Submitted(False, tenant_bytes=2 * one)
        assert everything(store) == before
        assert self.submit(store, "d", 2 * one, tenant="other").created
        # The same job again is found before anything is counted.
        assert self.submit(store, "a", 2 * one).exists

    def test_choices_and_tokens_and_logprobs_count(self, store):
        one = self.reserved(store)
        larger = REQUEST.sampling.model_copy(update={"n": 2, "logprobs": 5})
        self.submit(store, "a", sampling=larger)
        assert self.total(store) > 10 * one

    def test_what_has_ended_counts_what_is_stored(self, store):
        self.submit(store, "a")
        reserved = self.total(store)
        store.redis.set(keys.result("a"), "r" * 100)
        store.cancel("a")
        for _ in range(2):  # anybody may close it again
            store.close("a", QUEUE)
        request = len(store.redis.hget(keys.job("a"), "request"))
        assert self.total(store) == request + 200 < reserved
        assert store.redis.ttl(keys.stored_jobs("t")) > store.settings.result_ttl_s

    def test_a_larger_result_than_was_thought_counts_in_full(self, store):
        self.submit(store, "a")
        reserved = self.total(store)
        store.redis.set(keys.result("a"), "r" * reserved)
        store.cancel("a")
        store.close("a", QUEUE)
        assert self.total(store) > 2 * reserved

    def test_what_has_expired_gives_its_bytes_back(self, store):
        one = self.reserved(store)
        self.submit(store, "a", result_ttl_s=1)
        store.cancel("a")
        store.close("a", QUEUE)
        store.redis.delete(keys.job("a"))
        assert not self.submit(store, "b", one).created
        assert wait_until(lambda: self.submit(store, "b", one).created, 60)
        assert self.total(store) == one

    def test_an_open_job_that_is_looked_at_stays(self, store):
        one = self.reserved(store)
        self.submit(store, "a")
        (place,) = store.redis.zrange(keys.stored_jobs("t"), 0, -1)
        store.redis.zadd(keys.stored_jobs("t"), {place: 1})
        assert self.submit(store, "b", one) == Submitted(False, tenant_bytes=one)
        assert store.redis.zscore(keys.stored_jobs("t"), place) > 1

    def test_a_deleted_job_counts_no_more(self, store):
        self.submit(store, "a")
        self.submit(store, "b")
        store.cancel("a")
        store.close("a", QUEUE)
        for job_id in "ab":
            store.delete(job_id, QUEUE)
        store.close("b", QUEUE)
        assert self.total(store) == 0
        assert not store.redis.exists(keys.stored_jobs("t"), keys.stored_bytes("t"))

    @pytest.mark.parametrize("field", ["stored", "tenant", "num_choices"])
    def test_garbage_in_the_hash_does_not_stop_close(self, store, field):
        self.submit(store, "a")
        store.redis.hset(keys.job("a"), field, "9" * 400)
        store.cancel("a")
        assert store.close("a", QUEUE) == "closed"
        assert store.redis.ttl(keys.job("a")) > 0


class TestClients:
    def test_a_job_lives_for_its_client_unless_it_is_detached(self, store):
        for job_id, detached in (("attached", None), ("detached", True)):
            request = REQUEST.model_copy(update={"detached": detached})
            store.submit(
                job_id, request, queue=QUEUE, channel=CHANNEL, limits=Limits(10, 10), client_id="one"
            )
        assert {job.job_id: job.clients for job in store.open_jobs(QUEUE)} == {
            "attached": ("one",), "detached": (),
        }  # fmt: skip

    def test_who_attaches_keeps_it_alive_and_who_is_gone_is_forgotten(self, store):
        store.submit("j", REQUEST, queue=QUEUE, channel=CHANNEL, limits=Limits(10, 10), client_id="one")
        store.beat_client("one")
        store.watch("j", "two")
        assert fields_of(store)["clients"] == "two one"
        store.beat_client("two")
        store.redis.delete(keys.client("one"))
        store.watch("j", "three")
        assert fields_of(store)["clients"] == "three two"
        store.watch("j", "three")
        assert fields_of(store)["clients"] == "three two"

    def test_a_detached_job_stays_detached(self, store):
        submit(store)
        assert store.watch("j", "two")
        assert (fields_of(store)["clients"], fields_of(store)["watched"]) == ("", "1")

    def test_a_reader_without_a_name_changes_nothing_but_the_channel(self, store):
        store.submit("j", REQUEST, queue=QUEUE, channel=CHANNEL, limits=Limits(10, 10), client_id="one")
        assert store.watch("j")
        assert (fields_of(store)["clients"], fields_of(store)["watched"]) == ("one", "1")

    def test_a_client_that_was_not_heard_of_is_gone(self, store):
        store.beat_client("one")
        assert 0 < store.redis.pttl(keys.client("one")) <= 10_000
        assert store.are_gone(["one", "two"]) == [False, True]
        assert store.are_gone([]) == []


class TestTtl:
    def end_and_close(self, store, **request):
        submit(store, request=REQUEST.model_copy(update=request))
        beat(store, "w1")
        claim(store)
        step(store, item(0, 1, reason="stop"))
        assert store.close("j", QUEUE) == "closed"

    def test_a_job_has_its_own(self, store):
        self.end_and_close(store, result_ttl_s=5)
        assert 4 < store.redis.pttl(keys.job("j")) / 1000 <= 5
        assert 4 < store.redis.pttl(keys.log("j")) / 1000 <= 5

    def test_nothing_is_kept_where_it_is_zero(self, store):
        self.end_and_close(store, result_ttl_s=0)
        assert store.redis.keys("pf:job:*") + store.redis.keys("pf:log:*") == []

    def test_a_dead_letter_is_kept_longer_than_its_jobs_own(self, store):
        submit(store, request=REQUEST.model_copy(update={"result_ttl_s": 5}))
        beat(store, "w1")
        claim(store)
        store.end("j", "w1", 1, JobState.DEAD)
        store.close("j", QUEUE)
        assert store.redis.ttl(keys.job("j")) > store.settings.dead_letter_ttl_s - 60

    def test_but_not_where_nothing_may_be_kept(self, store):
        submit(store, request=REQUEST.model_copy(update={"result_ttl_s": 0}))
        beat(store, "w1")
        claim(store)
        store.end("j", "w1", 1, JobState.DEAD)
        store.close("j", QUEUE)
        assert not store.redis.exists(keys.job("j"))


class TestClosing:
    @pytest.mark.parametrize("state", ["Q", "R"])
    def test_an_end_that_the_server_forgot_in_a_restart_is_not_closed(self, store, state):
        """It comes between END and CLOSE: the worker must outlive it, and the job goes on."""
        running(store)
        if state == "Q":
            store.release("j", "w1", 1)
        before = everything(store)
        assert JobCloser(store, make_celery(store.settings)).close("j") is None
        assert everything(store) == before

    def test_a_result_does_not_outlive_a_job_that_was_deleted_meanwhile(self, store):
        """A worker writes the result while a client deletes the job: the delete came last and stays."""
        running(store)
        store.end("j", "w1", 1, JobState.CANCELLED, reason="cancelled")
        app = make_celery(store.settings)

        class Interrupted(JobCloser):
            def _write_result(self, record):
                assert JobCloser(store, app).delete("j")
                super()._write_result(record)

        Interrupted(store, app).close("j")
        assert not store.redis.exists(keys.job("j"), "celery-task-meta-j")


class TestCondemning:
    def test_the_first_of_several_callers_is_told(self, store):
        """A worker and the sweeper may both find a job unreadable: it is counted and logged once."""
        running(store)
        assert store.condemn("j", QUEUE)
        assert not store.condemn("j", QUEUE)
        assert store.read("j").state is JobState.DEAD
        assert store.redis.zscore(keys.DEAD, "j")

    def test_a_hash_that_is_gone_is_counted_once_too(self, store):
        running(store)
        store.redis.rpush(keys.log("j"), "x")
        store.redis.delete(keys.job("j"))
        assert store.condemn("j", QUEUE)
        assert not store.condemn("j", QUEUE)
        assert not store.redis.exists(keys.log("j"))

    def test_a_job_that_its_client_submitted_again_meanwhile_is_kept(self, store):
        running(store)
        before = everything(store)
        assert not store.condemn("j", QUEUE, only_missing=True)
        assert everything(store) == before

    def test_a_new_job_does_not_begin_with_an_old_ones_tokens(self, store):
        """The hash was deleted, its log was not; the same id comes again."""
        store.redis.rpush(keys.log("j"), "x")
        submit(store)
        assert not store.redis.exists(keys.log("j"))


class TestFullServer:
    @pytest.fixture
    def full(self, store):
        """A server at its memory limit, with jobs in every state."""
        for job_id in ("ending", "released", "cancelled", "marked", "begun"):
            running(store, job_id)
        for job_id in ("queued", "late", "deleted"):
            submit(store, job_id)
        store.redis.hset(keys.job("late"), "deadline", "1")
        running(store, "done")
        step(store, item(0, 1, job_id="done", reason="stop"))
        store.redis.set("lock", "mine")
        store.redis.config_set("maxmemory", 1)
        yield store
        store.redis.config_set("maxmemory", 0)

    def test_nothing_new_is_taken(self, full):
        assert full.is_full()
        for call in (
            lambda: submit(full, "new"),
            lambda: step(full, item(0, 1, job_id="begun")),
            lambda: claim(full, "queued"),
            lambda: full.watch("begun"),
        ):
            with pytest.raises(StorageFull):
                call()
        assert full.read("begun").num_tokens == [0]
        assert full.read("new") is None

    def test_what_runs_can_end_and_what_ended_can_go(self, full: JobStore):
        status = WorkerStatus(worker_id="w1", model="m", host="h", pid=1, started_at=0.0)
        assert full.beat(status, LEASE_S) is False
        assert full.mark("w1", {"marked": 1}) == set()
        assert full.end("ending", "w1", 1, JobState.FAILED, reason="error") == "ended"
        assert full.release("released", "w1", 1) == "released"
        assert full.cancel("cancelled") == "flagged"
        assert full.cancel("queued") == "ended"
        assert full.expire("late") is True
        assert full.delete("deleted", QUEUE) == "ended"
        assert full.claim_callbacks("done") is True
        assert full.close("done", QUEUE) == "closed"
        assert full.close("deleted", QUEUE) == "closed"
        assert full.unlock("lock", "mine") is True
        assert full.read("deleted") is None

    def test_room_again_is_seen(self, full):
        full.redis.config_set("maxmemory", 0)
        assert not full.is_full()
        assert submit(full, "new").created


class TestBeat:
    def test_it_says_whether_the_server_still_knows_the_model(self, store):
        status = WorkerStatus(worker_id="w1", model="m", host="h", pid=1, started_at=0.0)
        assert store.beat(status, LEASE_S) is False
        card = ModelCard(name="m", max_model_len=8, vocab_size=9, max_queue_depth=10, fingerprint=FINGERPRINT)
        store.publish_card(card)
        assert store.beat(status, LEASE_S) is True
        store.remove_card("m")
        assert store.beat(status, LEASE_S) is False
        assert store.is_alive("w1")


def test_an_epoch_below_zero_stops_no_step(store):
    """A stranger wrote it over the job. The step of all jobs together would fail, and with it the worker."""
    beat(store, "w1")
    for job_id in ("broken", "whole"):
        submit(store, job_id)
    store.redis.hset(keys.job("broken"), "epoch", "-5")
    epochs = {job_id: claim(store, job_id).epoch for job_id in ("broken", "whole")}
    assert epochs == {"broken": -4, "whole": 1}
    replies = step(store, *(item(0, 1, job_id=job_id, epoch=epoch) for job_id, epoch in epochs.items()))
    assert [reply.status for reply in replies] == ["ok", "ok"]


def test_an_epoch_that_no_number_holds_fences_each_operation(store):
    """A job that STEP accepts and MARK refuses would wait for its first token forever."""
    beat(store, "w1")
    submit(store)
    store.redis.hset(keys.job("j"), "epoch", "-78450625330237072")
    epoch = claim(store).epoch
    assert store.mark("w1", {"j": epoch}) == {"j"}
    assert step(store, item(0, 1, epoch=epoch)).status == "fenced"
