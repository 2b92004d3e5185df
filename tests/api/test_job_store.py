"""JobStore: each script against a real server, as the protocol's numbered lines say.

The workers here are names with a lease; a "paused" worker is one that goes on with an epoch that is over.
"""

from __future__ import annotations

import json
import time

import pytest
import redis as redis_py
from job_store_helpers import (
    CHANNEL,
    FINGERPRINT,
    QUEUE,
    REQUEST,
    beat,
    claim,
    die,
    entry_of,
    everything,
    item,
    running,
    step,
    submit,
)  # fmt: skip
from step_items import StepItem, step_batch

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import ProtocolError, StorageFull
from pagefleet.api.contract.messages import (
    EndedEvent,
    ErrorInfo,
    GenerateRequest,
    JobState,
    ModelCard,
    parse_event,
    split_events,
)
from pagefleet.api.protocol import operations
from pagefleet.api.protocol.operation_types import (
    CancelVerdict,
    Claim,
    ClaimVerdict,
    Operation,
    StepReply,
    StepStatus,
    Submitted,
)
from pagefleet.api.protocol.scripts import NAMES, load_script


class TestSubmit:
    def test_a_new_job_is_queued_and_in_the_ledger(self, store):
        assert submit(store) == Submitted(True, None, None)
        fields = store.redis.hgetall("pf:job:j")
        enqueued_at = int(fields.pop("enqueued_at"))
        assert abs(enqueued_at / 1000 - time.time()) < 5
        assert json.loads(fields.pop("request")) == {
            "model": "m", "prompt": "Hello", "sampling": {"seed": 7}, "priority": 3,
        }  # fmt: skip
        assert fields == {
            "state": "Q", "epoch": "0", "attempts": "0", "num_ended": "0", "queue": QUEUE, "priority": "3",
            "channel": CHANNEL, "num_choices": "1", "clients": "", "tenant_ledger": "",
        }  # fmt: skip
        assert store.redis.zrange("pf:open:m.interactive", 0, -1, withscores=True) == [("j", enqueued_at)]

    def test_an_open_job_never_expires(self, store):
        running(store)
        step(store, item(0, 1))
        assert store.redis.ttl("pf:job:j") == store.redis.ttl("pf:log:j") == -1

    def test_the_same_id_again_changes_nothing(self, store):
        submit(store)
        before = everything(store)
        assert submit(store, request=REQUEST.model_copy(update={"prompt": "Other"})) == Submitted(
            False, None, None
        )
        assert everything(store) == before

    def test_a_full_queue_says_how_deep_and_writes_nothing(self, store):
        submit(store, "a", max_depth=2)
        submit(store, "b", max_depth=2)
        before = everything(store)
        assert submit(store, "c", max_depth=2) == Submitted(False, 2, None)
        assert everything(store) == before

    def test_the_same_id_is_found_in_a_full_queue_too(self, store):
        submit(store, "a", max_depth=1)
        assert submit(store, "a", max_depth=1) == Submitted(False, None, None)

    def test_depth_counts_what_is_open_running_jobs_too(self, store):
        running(store)
        assert submit(store, "b", max_depth=1) == Submitted(False, 1, None)
        step(store, item(0, 1, reason="stop"))
        assert submit(store, "b", max_depth=1) == Submitted(False, 1, None)  # ended, but not closed
        store.close("j", QUEUE)
        assert submit(store, "b", max_depth=1) == Submitted(True, None, None)

    def test_each_lane_has_its_own_depth(self, store):
        submit(store, "a", max_depth=1)
        assert submit(store, "b", max_depth=1, queue="m.batch").created

    def test_a_deadline_is_a_moment_of_the_servers_clock(self, store):
        submit(store, request=REQUEST.model_copy(update={"deadline_s": 1.5}))
        fields = store.redis.hgetall("pf:job:j")
        assert int(fields["deadline"]) == int(fields["enqueued_at"]) + 1500

    def test_wrong_arguments_write_nothing(self, store):
        names = [keys.job("j"), keys.open_jobs(QUEUE)]
        for args in (
            ["j", "many", 10, "", 0, "", 1, 10, 1, "queue", QUEUE],
            ["j", 10, "many", "", 0, "", 1, 10, 1, "queue", QUEUE],
            ["j", 10, 10, "soon", 0, "", 1, 10, 1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 0, 10, 1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 1.5, 10, 1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 129, 10, 1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 1, "many", 1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 1, 10, -1, "queue", QUEUE],
            ["j", 10, 10, "", 0, "", 1, 10, 1, "queue"],
            ["j", 10, 10, "", 0, "", 1, 10, 1],
        ):
            with pytest.raises(redis_py.ResponseError):
                store.run(Operation("submit", names, args, str))
            assert everything(store) == {}


class TestClaim:
    def test_a_queued_job_gets_an_owner_and_an_epoch(self, store):
        submit(store)
        beat(store, "w1")
        reply = claim(store)
        assert reply[:3] == (ClaimVerdict.CLAIMED, 1, 1)
        assert GenerateRequest.model_validate_json(reply.request_json) == REQUEST
        assert reply.num_tokens == (0,)
        record = store.read("j")
        assert record.state is JobState.RUNNING
        assert record.fields["owner"] == "w1"
        assert json.loads(record.fields["fingerprint"]) == FINGERPRINT.model_dump()
        assert int(record.fields["claimed_at"]) >= int(record.fields["enqueued_at"])

    def test_a_job_that_nobody_submitted(self, store):
        beat(store, "w1")
        assert claim(store) == Claim(ClaimVerdict.MISSING)
        assert store.read("j") is None

    def test_a_worker_without_a_lease_changes_nothing(self, store):
        submit(store)
        before = everything(store)
        assert claim(store).verdict is ClaimVerdict.NO_LEASE
        assert everything(store) == before

    def test_a_live_workers_job_stays_its_own(self, store):
        running(store)
        beat(store, "w2")
        before = everything(store)
        assert claim(store, worker_id="w2").verdict is ClaimVerdict.ELSEWHERE
        assert everything(store) == before

    def test_a_dead_workers_job_goes_on_where_it_stopped(self, store):
        running(store)
        step(store, item(0, 3))
        die(store, "w1")
        beat(store, "w2")
        reply = claim(store, worker_id="w2")
        assert (reply.verdict, reply.epoch, reply.attempt) == (ClaimVerdict.CLAIMED, 2, 2)
        assert reply.num_tokens == (3,)
        assert store.read("j").attempts == 2

    def test_its_own_message_again_begins_a_new_epoch(self, store):
        """A worker that does not know its own job any more (it asks before it claims) starts anew."""
        running(store)
        assert claim(store).epoch == 2
        assert step(store, item(0, 1, epoch=1)).status is StepStatus.FENCED

    @pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.DEAD])
    def test_an_ended_job_is_left_alone(self, store, state):
        running(store)
        store.end("j", "w1", 1, state, reason="why")
        before = everything(store)
        assert claim(store).verdict is ClaimVerdict.FINAL
        die(store, "w1")
        before.pop("pf:lease:w1")
        assert claim(store).verdict is ClaimVerdict.FINAL  # also without a lease: it must be closed
        assert everything(store) == before

    def test_a_cancelled_job_of_a_dead_worker_ends_here(self, store, ear):
        running(store)
        store.cancel("j")
        die(store, "w1")
        beat(store, "w2")
        assert claim(store, worker_id="w2").verdict is ClaimVerdict.ENDED
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.CANCELLED, "cancelled")
        assert ear.events() == [(CHANNEL, "j", record.ended_event())]

    def test_a_job_past_its_deadline_ends_here(self, store, ear):
        submit(store, request=REQUEST.model_copy(update={"deadline_s": 0.001}))
        beat(store, "w1")
        time.sleep(0.01)
        assert claim(store).verdict is ClaimVerdict.ENDED
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.FAILED, "deadline")
        assert ear.events() == [(CHANNEL, "j", record.ended_event())]

    def test_many_are_claimed_in_one_round_trip_each_with_its_own_verdict(self, store):
        running(store, "theirs", "w2")
        submit(store, "mine")
        beat(store, "w1")
        replies = store.claim(["mine", "theirs", "nobodys"], "w1", FINGERPRINT.model_dump_json())
        assert [reply.verdict.value for reply in replies] == ["claimed", "elsewhere", "missing"]


class TestMark:
    def test_the_owner_makes_its_jobs_suspects(self, store):
        running(store, "a")
        running(store, "b")
        assert store.mark("w1", {"a": 1, "b": 1}) == set()
        assert [store.read(job_id).fields["suspect"] for job_id in "ab"] == ["1", "1"]

    def test_the_first_token_clears_the_suspicion(self, store):
        running(store)
        store.mark("w1", {"j": 1})
        step(store, item(0, 1))
        assert store.read("j").fields["suspect"] == "0"

    def test_what_was_lost_to_the_fence_is_named_and_left_alone(self, store):
        running(store, "mine")
        running(store, "theirs", "w2")
        running(store, "newer")
        claim(store, "newer")
        running(store, "over")
        store.end("over", "w1", 1, JobState.FAILED)
        lost = store.mark("w1", {"mine": 1, "theirs": 1, "newer": 1, "over": 1, "nobodys": 1})
        assert lost == {"theirs", "newer", "over", "nobodys"}
        assert [store.read(j).fields["suspect"] for j in ("mine", "theirs", "newer")] == ["1", "0", "0"]
        assert store.read("nobodys") is None


class TestStep:
    def test_tokens_are_appended_counted_and_published(self, store, ear):
        running(store)
        assert step(store, item(0, 2, accepted=5)) == (StepStatus.OK, 2)
        assert step(store, item(2, 1)) == (StepStatus.OK, 3)
        record = store.read("j")
        assert record.num_tokens == [3]
        assert record.entries == [entry_of(item(0, 2)), entry_of(item(2, 1))]
        assert record.num_prompt_tokens == 5
        assert [event for _channel, _job, event in ear.events()] == [
            parse_event("a", '{"num_prompt_tokens":5,"attempt":1}'), entry_of(item(0, 2)),
            entry_of(item(2, 1)),
        ]  # fmt: skip

    def test_the_first_token_has_its_time_and_later_ones_do_not_move_it(self, store):
        running(store)
        assert "first_token_at" not in store.read("j").fields
        step(store, item(0, 1))
        first = store.read("j").fields["first_token_at"]
        time.sleep(0.005)
        step(store, item(1, 1))
        step(store, item(0, 1))
        assert store.read("j").fields["first_token_at"] == first

    def test_the_same_call_twice_is_applied_once(self, store, ear):
        """Its reply was lost, so the worker sends it again."""
        running(store)
        first = step(store, item(0, 2))
        before, heard = everything(store), ear.events()
        assert step(store, item(0, 2)) == first == (StepStatus.OK, 2)
        assert everything(store) == before
        assert len(heard) == 1
        assert ear.events() == []

    def test_a_lost_reply_of_the_last_step(self, store, ear):
        running(store)
        last = item(0, 2, reason="stop")
        assert step(store, last) == (StepStatus.OK, 2)
        before, heard = everything(store), ear.events()
        assert step(store, last) == (StepStatus.OK, 2)
        assert everything(store) == before
        assert len(heard) == 2
        assert ear.events() == []

    def test_a_server_that_forgot_says_from_where_to_send_again(self, store):
        running(store)
        step(store, item(0, 2))
        before = everything(store)
        assert step(store, item(5, 1)) == (StepStatus.BEHIND, 2)
        assert everything(store) == before
        assert step(store, item(2, 4)) == (StepStatus.OK, 6)

    def test_a_partial_overlap_is_sent_again_from_where_the_log_ends(self, store):
        running(store)
        step(store, item(0, 2))
        before = everything(store)
        assert step(store, item(1, 2, reason="stop")) == (StepStatus.BEHIND, 2)
        assert everything(store) == before

    def test_an_end_whose_tokens_are_not_all_in_is_none(self, store):
        running(store)
        assert step(store, item(3, 1, reason="stop")).status is StepStatus.BEHIND
        assert store.read("j").state is JobState.RUNNING

    def test_the_last_tokens_end_the_job(self, store, ear):
        running(store)
        step(store, item(0, 2))
        ear.events()
        assert step(store, item(2, 1, reason="length")) == (StepStatus.OK, 3)
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.DONE, "length")
        assert "ended_at" in record.fields
        assert ear.events() == [
            (CHANNEL, "j", entry_of(item(2, 1, reason="length"))),
            (CHANNEL, "j", EndedEvent(state=JobState.DONE, num_tokens=[3], finish_reasons=["length"])),
        ]
        assert store.redis.zscore("pf:open:m.interactive", "j") is not None  # until CLOSE

    def test_an_end_without_new_tokens(self, store):
        running(store)
        step(store, item(0, 2))
        assert step(store, item(2, 0, reason="stop")) == (StepStatus.OK, 2)
        record = store.read("j")
        assert (record.state, len(record.entries)) == (JobState.DONE, 1)

    def test_a_job_ends_when_all_its_choices_have(self, store, ear):
        running(store)
        store.redis.hset("pf:job:j", "num_choices", 2)  # a later version submits several
        step(store, item(0, 2, reason="stop"))
        assert store.read("j").state is JobState.RUNNING
        step(store, item(0, 2, reason="stop"))  # a lost reply ends nothing twice
        assert store.read("j").state is JobState.RUNNING
        ear.events()
        step(store, item(0, 1, choice=1, reason="length"))
        record = store.read("j")
        assert (record.state, record.num_tokens) == (JobState.DONE, [2, 1])
        assert ear.events()[-1][2] == record.ended_event()
        assert [choice.token_ids for choice in record.result().choices] == [[0, 1], [0]]
        assert [choice.finish_reason for choice in record.result().choices] == ["stop", "length"]

    def test_one_call_for_many_jobs_each_with_its_own_reply(self, store):
        for job_id in ("a", "b", "c"):
            running(store, job_id)
        store.cancel("b")
        claim(store, "c")
        replies = step(
            store,
            item(0, 1, job_id="a"),
            item(0, 1, job_id="b"),
            item(0, 1, job_id="c"),
            item(0, 1, job_id="d"),
        )
        assert replies == [
            StepReply(StepStatus.OK, 1),
            StepReply(StepStatus.CANCEL, 1),
            StepReply(StepStatus.FENCED, 0),
            StepReply(StepStatus.GONE, 0),
        ]

    def test_one_publish_for_each_channel_and_call(self, store, ear):
        for job_id, channel in (("a", "pf:reply:one"), ("b", "pf:reply:one"), ("c", "pf:reply:two")):
            submit(store, job_id, channel=channel)
            beat(store, "w1")
            claim(store, job_id)
        store.watch("a")
        step(store, *(item(0, 1, job_id=job_id, accepted=2, reason="stop") for job_id in "abc"))
        heard = ear.messages()
        assert [channel for channel, _ in heard] == ["pf:reply:one", "pf:job-events:a", "pf:reply:two"]
        assert [[line[:2] for line in split_events(data)] for _, data in heard] == [
            [(job_id, kind) for job_id in "ab" for kind in "ate"],
            [("a", kind) for kind in "ate"],
            [("c", kind) for kind in "ate"],
        ]

    def test_a_job_without_a_client_is_published_to_nobody(self, store, ear):
        submit(store, channel="")
        beat(store, "w1")
        claim(store)
        step(store, item(0, 1, reason="stop"))
        assert ear.messages() == []

    def test_a_cancel_comes_back_with_the_next_step_and_its_tokens_stay(self, store):
        running(store)
        store.cancel("j")
        assert step(store, item(0, 2)) == (StepStatus.CANCEL, 2)
        assert store.read("j").num_tokens == [2]

    def test_a_step_without_tokens_asks_for_flags(self, store):
        running(store)
        ask = StepItem("j", 1, 0, 0, None)
        assert step(store, ask) == (StepStatus.OK, 0)
        store.cancel("j")
        assert step(store, ask) == (StepStatus.CANCEL, 0)
        assert store.read("j").entries == []

    def test_an_end_goes_before_a_cancel(self, store):
        running(store)
        store.cancel("j")
        assert step(store, item(0, 2, reason="stop")) == (StepStatus.OK, 2)
        assert store.read("j").state is JobState.DONE

    def test_a_deadline_comes_back_with_the_next_step(self, store):
        submit(store, request=REQUEST.model_copy(update={"deadline_s": 0.2}))
        beat(store, "w1")
        claim(store)
        assert step(store, item(0, 1)) == (StepStatus.OK, 1)
        time.sleep(0.25)
        assert step(store, item(1, 1)) == (StepStatus.DEADLINE, 2)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("epochs", [1]),
            ("epochs", [1, "one"]),
            ("choices", [0, -1]),
            ("choices", [0, None]),
            ("bases", [0, "one"]),
            ("bases", {}),
            ("counts", [1, "one"]),
            ("counts", [1]),
            ("reasons", [[2]]),
            ("reasons", [[2, {}]]),
            ("accepted", [[1, 1, 0], [2, "many", 0]]),
            ("accepted", [[1, 1, 0], [2, 1]]),
            ("accepted", None),
        ],
    )
    def test_a_wrong_number_of_one_item_changes_nothing_for_any(self, store, column, value, ear):
        running(store, "a")
        running(store, "b")
        good = operations.step(
            "w1", step_batch([item(0, 1, job_id="a", accepted=1), item(0, 1, job_id="b", accepted=1)])
        )
        worker, columns, *entries = good.args
        args = [worker, json.dumps(json.loads(columns) | {column: value}), *entries]
        before = everything(store)
        with pytest.raises(redis_py.ResponseError, match="step: "):
            store.run(Operation("step", good.keys, args, list))
        assert everything(store) == before
        assert ear.messages() == []

    def test_tokens_without_an_entry_change_nothing(self, store):
        running(store, "a")
        running(store, "b")
        good = operations.step("w1", step_batch([item(0, 1, job_id="a"), item(0, 1, job_id="b")]))
        before = everything(store)
        with pytest.raises(redis_py.ResponseError, match="step: "):
            store.run(Operation("step", good.keys, [*good.args[:-1], ""], list))
        assert everything(store) == before

    @pytest.mark.parametrize("cut", [slice(-1), slice(-2), slice(1), slice(0)])
    def test_too_few_arguments_change_nothing(self, store, cut):
        running(store, "a")
        running(store, "b")
        good = operations.step("w1", step_batch([item(0, 1, job_id="a"), item(0, 1, job_id="b")]))
        before = everything(store)
        with pytest.raises(redis_py.ResponseError):
            store.run(Operation("step", good.keys, good.args[cut], list))
        assert everything(store) == before


class TestFencing:
    """A worker that was paused, and comes back when another has its job."""

    @pytest.fixture
    def taken_over(self, store):
        running(store)
        step(store, item(0, 2))
        die(store, "w1")
        beat(store, "w2")
        assert claim(store, worker_id="w2").epoch == 2
        beat(store, "w1")  # it wakes up and beats again, but the job is not its own any more
        return store

    @pytest.mark.parametrize(
        "act",
        [
            lambda store: step(store, item(2, 1)).status == "fenced",
            lambda store: step(store, item(2, 1, reason="stop")).status == "fenced",
            lambda store: step(store, item(0, 2)).status == "fenced",
            lambda store: step(store, item(2, 0, reason="stop")).status == "fenced",
            lambda store: step(store, item(2, 1, epoch=2)).status == "fenced",
            lambda store: store.end("j", "w1", 1, JobState.FAILED) == "fenced",
            lambda store: store.end("j", "w1", 2, JobState.FAILED) == "fenced",
            lambda store: store.release("j", "w1", 1) == "fenced",
            lambda store: store.mark("w1", {"j": 1}) == {"j"},
            lambda store: claim(store).verdict == "elsewhere",
        ],
        ids=["step", "final", "known", "end", "epoch", "fail", "guess", "release", "mark", "claim"],
    )
    def test_nothing_it_sends_is_written(self, taken_over, act, ear):
        before = everything(taken_over)
        assert act(taken_over)
        assert everything(taken_over) == before
        assert ear.messages() == []

    def test_the_new_owner_goes_on(self, taken_over):
        assert step(taken_over, item(2, 1, epoch=2, reason="stop"), worker_id="w2") == (StepStatus.OK, 3)
        assert [e.offset for e in taken_over.read("j").entries] == [0, 2]

    def test_the_same_epoch_of_another_owner_is_fenced_too(self, store):
        """After a rollback of the server an epoch can come twice; (owner, epoch) cannot."""
        running(store)
        beat(store, "w2")
        assert step(store, item(0, 1), worker_id="w2").status is StepStatus.FENCED

    def test_a_step_after_the_end_by_cancel_is_fenced(self, store):
        running(store)
        die(store, "w1")
        assert store.cancel("j") is CancelVerdict.ENDED
        assert step(store, item(0, 1)).status is StepStatus.FENCED
        assert step(store, item(0, 1, reason="stop")).status is StepStatus.FENCED


class TestEndAndRelease:
    def test_a_failure_says_why(self, store, ear):
        running(store)
        step(store, item(0, 1))
        ear.events()
        error = ErrorInfo(code="context_too_long", message='Too "long"\n.', param="prompt")
        assert store.end("j", "w1", 1, JobState.FAILED, reason="error", error=error) == "ended"
        record = store.read("j")
        assert (record.state, record.finish_reason(0), record.error) == (JobState.FAILED, "error", error)
        assert ear.events() == [(CHANNEL, "j", record.ended_event())]

    def test_the_same_end_twice_is_one(self, store, ear):
        running(store)
        store.end("j", "w1", 1, JobState.CANCELLED, reason="cancelled")
        before, heard = everything(store), ear.messages()
        assert store.end("j", "w1", 1, JobState.CANCELLED, reason="cancelled") == "ended"
        assert (everything(store), len(heard), ear.messages()) == (before, 1, [])

    def test_a_final_state_never_changes(self, store):
        running(store)
        step(store, item(0, 1, reason="stop"))
        before = everything(store)
        for state in (JobState.FAILED, JobState.CANCELLED, JobState.DEAD):
            assert store.end("j", "w1", 1, state, reason="late") == "fenced"
        assert store.cancel("j") is CancelVerdict.FINAL
        assert store.release("j", "w1", 1) == "fenced"
        assert claim(store).verdict is ClaimVerdict.FINAL
        assert everything(store) == before

    def test_an_end_that_is_none_is_refused(self, store):
        running(store)
        before = everything(store)
        with pytest.raises(redis_py.ResponseError, match="the state must be final"):
            store.end("j", "w1", 1, JobState.QUEUED)
        assert everything(store) == before

    def test_an_error_that_is_no_json_is_refused(self, store):
        """It would be published inside an event that no reader could read."""
        running(store)
        before = everything(store)
        with pytest.raises(redis_py.ResponseError, match="end: "):
            store.run(Operation("end", [keys.job("j")], ["j", "w1", 1, "F", "error", "{oops"], str))
        assert everything(store) == before

    def test_a_finish_reason_that_was_there_stays(self, store):
        running(store)
        store.redis.hset("pf:job:j", "num_choices", 2)
        step(store, item(0, 1, reason="stop"))
        store.end("j", "w1", 1, JobState.CANCELLED, reason="cancelled")
        assert store.read("j").ended_event().finish_reasons == ["stop", "cancelled"]

    def test_a_job_given_back_keeps_its_log(self, store):
        running(store)
        store.mark("w1", {"j": 1})
        step(store, item(0, 2))
        assert store.release("j", "w1", 1) == "released"
        record = store.read("j")
        assert (record.state, record.fields["suspect"], record.num_tokens) == (JobState.QUEUED, "0", [2])
        beat(store, "w2")
        assert claim(store, worker_id="w2")[:3] == (ClaimVerdict.CLAIMED, 2, 2)

    def test_a_lost_reply_of_a_release(self, store):
        running(store)
        store.release("j", "w1", 1)
        assert store.release("j", "w1", 1) == "released"
        claim(store, worker_id="w1")
        assert store.release("j", "w1", 1) == "fenced"

    def test_after_a_release_its_own_steps_are_fenced(self, store):
        running(store)
        store.release("j", "w1", 1)
        assert step(store, item(0, 1)).status is StepStatus.FENCED

    def test_without_a_job_nothing_is_made(self, store):
        assert store.end("j", "w1", 1, JobState.FAILED) == "missing"
        assert store.release("j", "w1", 1) == "missing"
        assert step(store, item(0, 1)).status is StepStatus.GONE
        assert store.cancel("j") is CancelVerdict.MISSING
        assert store.watch("j") is False
        assert store.close("j", QUEUE) == "missing"
        assert store.claim_callbacks("j") is False
        assert everything(store) == {}


class TestCancel:
    def test_a_queued_job_ends_at_once(self, store, ear):
        submit(store)
        assert store.cancel("j") is CancelVerdict.ENDED
        record = store.read("j")
        assert (record.state, record.finish_reason(0)) == (JobState.CANCELLED, "cancelled")
        assert ear.events() == [(CHANNEL, "j", record.ended_event())]
        assert store.cancel("j") is CancelVerdict.FINAL
        assert ear.events() == []

    def test_a_running_job_is_flagged_for_its_worker(self, store, ear):
        running(store)
        assert store.cancel("j") is CancelVerdict.FLAGGED
        assert store.cancel("j") is CancelVerdict.FLAGGED
        assert store.read("j").state is JobState.RUNNING
        assert ear.events() == []

    def test_a_dead_workers_job_ends_at_once(self, store):
        running(store)
        die(store, "w1")
        assert store.cancel("j") is CancelVerdict.ENDED

    def test_a_released_job_ends_at_once(self, store):
        running(store)
        store.release("j", "w1", 1)
        assert store.cancel("j") is CancelVerdict.ENDED


class TestClose:
    def test_hash_and_log_expire_only_from_now_on(self, store):
        running(store)
        step(store, item(0, 1, reason="stop"))
        assert store.redis.ttl("pf:job:j") == store.redis.ttl("pf:log:j") == -1
        assert store.close("j", QUEUE) == "closed"
        assert 3590 < store.redis.ttl("pf:job:j") <= 3600
        assert 3590 < store.redis.ttl("pf:log:j") <= 3600
        assert store.redis.zcard("pf:open:m.interactive") == 0

    def test_twice_is_once(self, store):
        running(store)
        step(store, item(0, 1, reason="stop"))
        assert [store.close("j", QUEUE), store.close("j", QUEUE)] == ["closed", "closed"]

    def test_an_open_job_is_not_closed(self, store):
        submit(store)
        before = everything(store)
        assert store.close("j", QUEUE) == "open"
        assert everything(store) == before

    def test_a_job_that_the_server_forgot_leaves_the_ledger(self, store):
        submit(store)
        store.redis.delete("pf:job:j")
        assert store.close("j", QUEUE) == "missing"
        assert store.redis.zcard("pf:open:m.interactive") == 0

    def test_callbacks_run_for_one_caller(self, store):
        running(store)
        assert [store.claim_callbacks("j"), store.claim_callbacks("j")] == [True, False]


class TestWorkers:
    def test_a_beat_is_a_lease_that_ends(self, store):
        beat(store, "w1", lease_s=0.05)
        assert [worker.worker_id for worker in store.workers()] == ["w1"]
        assert 0 < store.redis.pttl("pf:lease:w1") <= 50
        time.sleep(0.06)
        assert store.workers() == []
        assert store.redis.zrange("pf:workers", 0, -1) == ["w1"]  # known, as a tombstone

    def test_leaving_gives_the_lease_up(self, store):
        beat(store, "w1")
        beat(store, "w2")
        store.delete_lease("w1")
        assert [worker.worker_id for worker in store.workers()] == ["w2"]


class TestWatch:
    def test_from_now_on_the_job_speaks_on_its_own_channel_too(self, store, ear):
        running(store)
        step(store, item(0, 1))
        assert store.watch("j") is True
        step(store, item(1, 1, reason="stop"))
        heard = [(channel, type(event).__name__) for channel, _, event in ear.events()]
        assert heard == [
            (CHANNEL, "LogEntry"),
            (CHANNEL, "LogEntry"),
            (CHANNEL, "EndedEvent"),
            ("pf:job-events:j", "LogEntry"),
            ("pf:job-events:j", "EndedEvent"),
        ]

    def test_an_end_by_cancel_is_told_there_too(self, store, ear):
        submit(store, channel="")
        store.watch("j")
        store.cancel("j")
        assert [channel for channel, _ in ear.messages()] == ["pf:job-events:j"]


class TestCards:
    CARD = ModelCard(
        name="org/Model", max_model_len=8, vocab_size=9, max_queue_depth=10, aliases=["m"],
        fingerprint=FINGERPRINT,
    )  # fmt: skip

    def test_a_card_is_kept_until_it_is_removed(self, store):
        store.publish_card(self.CARD)
        assert store.cards() == [self.CARD]
        assert store.redis.ttl("pf:model:org/Model") == -1
        assert [store.remove_card("org/Model"), store.remove_card("org/Model")] == [True, False]
        assert store.cards() == []

    def test_a_card_that_only_a_newer_version_can_read_does_not_hide_the_others(self, store, caplog):
        store.publish_card(self.CARD)
        newer = json.loads(self.CARD.model_dump_json()) | {"name": "embedder", "task": "embed", "v": 2}
        store.redis.set("pf:model:embedder", json.dumps(newer))
        store.redis.sadd("pf:models", "embedder")
        assert store.cards() == [self.CARD]
        assert "embedder" in caplog.text


class TestReading:
    def test_hash_and_log_are_of_one_moment(self, store):
        running(store)
        step(store, item(0, 2, accepted=4))
        step(store, item(2, 1, reason="stop"))
        store.close("j", QUEUE)
        result = store.read("j").result()
        assert (result.text, result.token_ids, result.finish_reason) == ("<0><1><2>", [0, 1, 2], "stop")
        assert (result.model, result.state, result.worker) == ("m", JobState.DONE, "w1")
        assert (result.num_prompt_tokens, result.attempts) == (4, 1)
        times = [result.enqueued_at, result.claimed_at, result.first_token_at, result.ended_at]
        assert times == sorted(times)

    def test_without_the_log(self, store):
        running(store)
        step(store, item(0, 2))
        assert store.read("j", with_log=False).entries == []

    def test_a_log_that_cannot_be_read_is_one_sentence(self, store):
        running(store)
        store.redis.rpush("pf:log:j", '{"offset":"zero"}')
        with pytest.raises(ProtocolError, match=r"^The log of job j cannot be read: [^\n]+$") as raised:
            store.read("j")
        assert raised.value.job_id == "j"


class TestScripts:
    def test_every_file_is_listed(self):
        from importlib.resources import files

        import pagefleet.api.protocol.scripts as package

        found = {path.name.removesuffix(".lua") for path in files(package).iterdir() if ".lua" in path.name}
        assert found - {"prelude"} == set(NAMES)

    def test_a_server_that_forgot_its_scripts_gets_them_again(self, store):
        """It was restarted between any two calls."""

        def forget():
            store.redis.script_flush()

        forget()
        assert submit(store).created
        forget()
        beat(store, "w1")
        forget()
        assert claim(store).epoch == 1
        forget()
        assert store.mark("w1", {"j": 1}) == set()
        forget()
        assert store.watch("j")
        forget()
        assert step(store, item(0, 1)).num_tokens == 1
        forget()
        assert store.cancel("j") is CancelVerdict.FLAGGED
        forget()
        assert store.release("j", "w1", 1) == "released"
        forget()
        assert claim(store).verdict is ClaimVerdict.ENDED
        forget()
        assert store.end("j", "w1", 1, JobState.FAILED) == "fenced"
        forget()
        assert store.close("j", QUEUE) == "closed"

    def test_afterwards_only_the_digest_is_sent(self, store):
        submit(store)
        digests = [load_script(name).sha for name in NAMES]
        known = store.redis.script_exists(*digests)
        assert dict(zip(NAMES, known, strict=True))["submit"]

    def test_a_server_that_takes_no_writes_is_one_clear_error(self, store):
        """Out of memory (noeviction): nothing is half written, and the caller can tell."""
        running(store)
        before = everything(store)
        store.redis.config_set("maxmemory", 1)
        try:
            for call in (
                lambda: submit(store, "k"),
                lambda: claim(store),
                lambda: step(store, item(0, 1)),
            ):
                with pytest.raises(StorageFull, match="at its memory limit"):
                    call()
        finally:
            store.redis.config_set("maxmemory", 0)
        assert everything(store) == before
