"""Two workers, one client and one job, in any order, on the real scripts.

Each worker keeps what it knew when it last looked, however long ago: it may be paused, wake up and go on
with an epoch that is over; it may send a call twice. The client submits again, cancels, attaches. Beside
them runs the rule book: what the job must be after each call.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from step_items import StepItem, step_batch, step_replies

from pagefleet.api.client.stream import StreamState
from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import GenerateRequest, JobState, LogEntry, WorkerStatus, split_events
from pagefleet.api.protocol.operation_types import (
    CancelVerdict,
    ClaimVerdict,
    DeleteVerdict,
    Limits,
    StepStatus,
)
from pagefleet.api.testing import fake_card

QUEUE, CHANNEL, TOTAL = "m.interactive", "pf:reply:machine", 12
REQUEST = GenerateRequest(model="m", prompt="Hello")
WORKERS = st.sampled_from(["w1", "w2"])
SELDOM = st.sampled_from([False] * 5 + [True])
"""What ends a job comes seldom, else hardly a job would live to its second step."""


@dataclass
class Rules:
    """The job as it must be."""

    state: str = ""
    owner: str = ""
    epoch: int = 0
    tokens: list[int] = field(default_factory=list)
    cancel: bool = False
    closed: bool = False
    suspect: bool = False
    blame: int = 0
    fruitless: int = 0
    solo: bool = False
    doomed: bool = False  # deleted before it was closed: CLOSE removes it
    dead_letter: bool = False

    @property
    def is_final(self) -> bool:
        return self.state in ("D", "F", "C", "X")

    def end(self, state):
        self.state, self.suspect = state, False

    def owner_died(self, company):
        """Protocol line 12. ``company``: the owner's list of suspects."""
        self.fruitless += 1
        if self.suspect and (self.solo or len(company) <= 1):
            self.blame += 1
        elif self.suspect:
            self.solo = True
        if self.blame == 3 or self.fruitless == 10:
            self.end("X")
            self.dead_letter = True
        elif self.fruitless == 9:
            self.solo = True


@dataclass
class Memory:
    """What a worker believes: its epoch, and the tokens it knows of."""

    epoch: int = 0
    tokens: list[int] = field(default_factory=list)
    sent: list[StepItem] = field(default_factory=list)


class TwoWorkersOneClient(RuleBasedStateMachine):
    store = None  # set by the test
    numbers = itertools.count()

    @initialize(
        is_under_way=st.sampled_from([True, True, True, False]),
        past=st.sampled_from([{}, {}, {"blame": 2}, {"fruitless": 8}]),
    )
    def begin(self, is_under_way, past):
        self.store.redis.flushall()
        self.new_job()
        self.alive = set()
        self.suspects = {"w1": set(), "w2": set()}
        self.pubsub = self.store.redis.pubsub()
        self.pubsub.subscribe(CHANNEL)
        assert self.pubsub.get_message(timeout=5)["type"] == "subscribe"
        if is_under_way:  # most of what matters happens after this
            self.submit()
            self.beat("w1")
            self.claim("w1")
            for name, num_deaths in past.items():  # deaths that would take long to live through
                self.store.redis.hset(keys.job(self.job_id), name, num_deaths)
                setattr(self.rules, name, num_deaths)

    def new_job(self):
        self.job_id = f"j{next(self.numbers)}"
        self.rules = Rules()
        self.memories = {"w1": Memory(), "w2": Memory()}
        self.live = StreamState(self.job_id)

    def the_job_is_gone(self):
        """For good: who used its id again would not be told from it."""
        assert self.store.read(self.job_id) is None
        assert not self.store.redis.exists(keys.log(self.job_id))
        assert self.store.redis.zscore(keys.open_jobs(QUEUE), self.job_id) is None
        assert self.store.redis.zscore(keys.DEAD, self.job_id) is None
        self.new_job()

    def teardown(self):
        if hasattr(self, "pubsub"):
            self.pubsub.close()

    # The workers.

    @rule(worker=WORKERS)
    def beat(self, worker):
        self.store.beat(WorkerStatus(worker_id=worker, model="m", host="h", pid=1, started_at=0.0), 60)
        self.alive.add(worker)

    @rule(worker=WORKERS)
    def die_or_pause(self, worker):
        self.store.redis.delete(keys.lease(worker))
        self.alive.discard(worker)

    @rule(worker=WORKERS)
    def claim(self, worker):
        (reply,) = self.store.claim([self.job_id], worker, fake_card().fingerprint.model_dump_json())
        rules = self.rules
        if not rules.state:
            expected = ClaimVerdict.MISSING
        elif rules.is_final:
            expected = ClaimVerdict.FINAL
        elif worker not in self.alive:
            expected = ClaimVerdict.NO_LEASE
        elif rules.state == "R" and rules.owner != worker and rules.owner in self.alive:
            expected = ClaimVerdict.ELSEWHERE
        elif rules.cancel:
            expected = ClaimVerdict.ENDED
            rules.end("C")
        else:
            if rules.state == "R" and rules.owner != worker:
                rules.owner_died(self.suspects[rules.owner])
            expected = ClaimVerdict.ENDED if rules.is_final else ClaimVerdict.CLAIMED
        if expected is ClaimVerdict.CLAIMED:
            rules.state, rules.owner, rules.epoch = "R", worker, rules.epoch + 1
            rules.suspect = False
            assert reply.solo == rules.solo
            assert (reply.epoch, reply.attempt) == (rules.epoch, rules.epoch)
            assert reply.num_tokens == (len(rules.tokens),)
            sent = self.memories[worker].sent
            self.memories[worker] = Memory(rules.epoch, list(rules.tokens), sent)
        assert reply.verdict is expected

    @rule(in_first_prefill=st.booleans())
    def the_other_takes_over(self, in_first_prefill):
        """While the first is paused, not dead."""
        first, other = ("w1", "w2") if self.rules.owner != "w2" else ("w2", "w1")
        if in_first_prefill:
            self.mark(first)
        self.die_or_pause(first)
        self.beat(other)
        self.claim(other)

    def worker(self, data):
        """Rather the owner, and only one that ever claimed."""
        ever = [worker for worker, memory in self.memories.items() if memory.epoch]
        return data.draw(st.sampled_from([self.rules.owner] * 2 + ever if self.rules.owner in ever else ever))

    @precondition(lambda self: any(memory.epoch for memory in self.memories.values()))
    @rule(num_tokens=st.integers(0, 3), data=st.data(), reply_is_lost=st.booleans())
    def step(self, num_tokens, data, reply_is_lost):
        """Some new tokens, sent with some of those it knows the log to have."""
        worker = self.worker(data)
        memory = self.memories[worker]
        new = [memory.epoch * 100 + len(memory.tokens) + i for i in range(num_tokens)]
        base = data.draw(st.integers(max(0, len(memory.tokens) - 2), len(memory.tokens)))
        memory.tokens = (memory.tokens + new)[:TOTAL]
        self.send(worker, base)
        if reply_is_lost:
            self.check_step(worker, memory.sent[-1])

    @precondition(lambda self: any(memory.sent for memory in self.memories.values()))
    @rule(data=st.data())
    def an_old_step_arrives_late(self, data):
        worker = data.draw(st.sampled_from([w for w, memory in self.memories.items() if memory.sent]))
        self.check_step(worker, data.draw(st.sampled_from(self.memories[worker].sent)))

    def send(self, worker, base):
        memory = self.memories[worker]
        ids = memory.tokens[base:]
        reason = "length" if len(memory.tokens) == TOTAL else None
        entry = LogEntry(
            offset=base, token_ids=ids, texts=[f"<{token}>" for token in ids], finish_reason=reason
        )
        item = StepItem(self.job_id, memory.epoch, 0, base, entry)
        memory.sent.append(item)
        reply = self.check_step(worker, item)
        if reply.status is StepStatus.BEHIND:
            self.send(worker, reply.num_tokens)

    def check_step(self, worker, item):
        (reply,) = step_replies(self.store.step(worker, step_batch([item])))
        rules, base, ids = self.rules, item.base, item.entry.token_ids
        mine = (rules.owner, rules.epoch) == (worker, item.epoch)
        if not rules.state:
            expected = (StepStatus.GONE, 0)
        elif mine and rules.state == "D" and item.entry.finish_reason:
            expected = (StepStatus.OK, len(rules.tokens))
        elif not mine or rules.state != "R":
            expected = (StepStatus.FENCED, 0)
        elif base > len(rules.tokens) or base < len(rules.tokens) < base + len(ids):
            expected = (StepStatus.BEHIND, len(rules.tokens))
        else:
            if base == len(rules.tokens) and ids:
                rules.tokens += ids
                rules.fruitless = 0
                if rules.suspect:
                    self.clear_suspicion(worker)
            if item.entry.finish_reason:
                self.clear_suspicion(worker)
                rules.end("D")
            cancelled = rules.cancel and rules.state == "R"
            expected = (StepStatus.CANCEL if cancelled else StepStatus.OK, len(rules.tokens))
        assert reply == expected
        return reply

    @rule(worker=WORKERS)
    def mark(self, worker):
        self.store.redis.script_flush()  # a restart may come at any moment
        epoch = self.memories[worker].epoch
        rules = self.rules
        mine = (rules.state, rules.owner, rules.epoch) == ("R", worker, epoch)
        if mine:
            rules.suspect = True
            self.suspects[worker].add(self.job_id)
        assert self.store.mark(worker, {self.job_id: epoch}) == (set() if mine else {self.job_id})

    @rule(worker=WORKERS)
    def another_job_is_in_its_first_prefill_too(self, worker):
        self.store.redis.sadd(keys.suspects(worker), "other")
        self.suspects[worker].add("other")

    def clear_suspicion(self, worker):
        self.rules.suspect = False
        self.suspects[worker].discard(self.job_id)

    @rule(
        worker=WORKERS,
        state=st.sampled_from([JobState.FAILED, JobState.CANCELLED, JobState.DEAD]),
        really=SELDOM,
    )
    def end(self, worker, state, really):
        epoch, rules = self.memories[worker].epoch, self.rules
        if not really and not rules.is_final:
            return
        mine = (rules.owner, rules.epoch) == (worker, epoch)
        if not rules.state:
            expected = "missing"
        elif mine and rules.state in ("R", state.value):
            expected = "ended"
            if rules.state == "R":
                self.clear_suspicion(worker)
            rules.end(state.value)
        else:
            expected = "fenced"
        assert self.store.end(self.job_id, worker, epoch, state, reason="why") == expected

    @rule(worker=WORKERS, really=SELDOM)
    def release(self, worker, really):
        epoch, rules = self.memories[worker].epoch, self.rules
        if not really and not rules.is_final:
            return
        mine = (rules.owner, rules.epoch) == (worker, epoch)
        if not rules.state:
            expected = "missing"
        elif mine and rules.state in ("R", "Q"):
            expected = "released"
            if rules.state == "R":
                self.clear_suspicion(worker)
            rules.state = "Q"
        else:
            expected = "fenced"
        assert self.store.release(self.job_id, worker, epoch) == expected

    # The client, and whoever closes.

    @rule()
    def submit(self):
        created = self.store.submit(
            self.job_id, REQUEST, queue=QUEUE, channel=CHANNEL, limits=Limits(5, 10**6)
        ).created
        assert created == (not self.rules.state)
        self.rules.state = self.rules.state or "Q"

    @rule(really=SELDOM)
    def cancel(self, really):
        rules = self.rules
        only_flags = rules.state == "R" and rules.owner in self.alive
        if not (really or only_flags or rules.is_final):
            return
        if not rules.state:
            expected = CancelVerdict.MISSING
        elif rules.is_final:
            expected = CancelVerdict.FINAL
        elif rules.state == "R" and rules.owner in self.alive:
            expected, rules.cancel = CancelVerdict.FLAGGED, True
        else:
            expected = CancelVerdict.ENDED
            rules.end("C")
        assert self.store.cancel(self.job_id) is expected

    @rule(really=SELDOM)
    def cancel_if_queued(self, really):
        rules = self.rules
        if rules.state == "Q" and not really:
            return
        expected = {"": CancelVerdict.MISSING, "Q": CancelVerdict.ENDED, "R": CancelVerdict.RUNNING}.get(
            rules.state, CancelVerdict.FINAL
        )
        assert self.store.cancel(self.job_id, only_queued=True) is expected
        if expected is CancelVerdict.ENDED:
            rules.end("C")

    @rule(really=SELDOM)
    def delete(self, really):
        rules = self.rules
        if not really:
            return
        is_known = bool(rules.state)
        if not is_known:
            expected = DeleteVerdict.MISSING
        elif rules.is_final:
            expected = DeleteVerdict.DELETED if rules.closed else DeleteVerdict.ENDED
        elif rules.state == "R" and rules.owner in self.alive:
            expected, rules.cancel = DeleteVerdict.FLAGGED, True
        else:
            expected = DeleteVerdict.ENDED
            rules.end("C")
        rules.doomed, rules.dead_letter = is_known, False
        assert self.store.delete(self.job_id, QUEUE) is expected
        if expected is DeleteVerdict.DELETED:
            self.the_job_is_gone()

    @rule()
    def attach(self):
        assert self.store.watch(self.job_id) == bool(self.rules.state)

    @rule()
    def close(self):
        expected = "missing" if not self.rules.state else "closed" if self.rules.is_final else "open"
        assert self.store.close(self.job_id, QUEUE) == expected
        if expected == "closed" and self.rules.doomed:
            self.the_job_is_gone()
        else:
            self.rules.closed |= expected == "closed"

    # What always holds.

    @invariant()
    def the_job_is_as_the_rules_say(self):
        if not hasattr(self, "rules"):
            return
        record = self.store.read(self.job_id)
        if not self.rules.state:
            assert record is None
            return
        assert record.state == self.rules.state
        assert record.num_tokens == [len(self.rules.tokens)]
        assert int(record.fields["epoch"]) == record.attempts == self.rules.epoch
        assert record.fields.get("owner", "") == self.rules.owner
        offset = 0
        for entry in record.entries:
            assert entry.offset == offset
            offset += len(entry.token_ids)
        assert [token for entry in record.entries for token in entry.token_ids] == self.rules.tokens
        fields = record.fields
        assert int(fields.get("blame", 0)) == self.rules.blame
        assert int(fields.get("fruitless", 0)) == self.rules.fruitless
        assert (fields.get("solo") == "1", fields.get("suspect") == "1") == (
            self.rules.solo, self.rules.suspect,
        )  # fmt: skip
        is_dead_letter = self.store.redis.zscore(keys.DEAD, self.job_id) is not None
        assert is_dead_letter == self.rules.dead_letter
        in_ledger = self.store.redis.zscore(keys.open_jobs(QUEUE), self.job_id) is not None
        assert in_ledger != self.rules.closed
        assert (self.store.redis.ttl(keys.job(self.job_id)) == -1) != self.rules.closed

    @invariant()
    def the_lists_of_suspects_are_as_the_rules_say(self):
        for worker, suspects in getattr(self, "suspects", {}).items():
            assert self.store.redis.smembers(keys.suspects(worker)) == suspects

    @invariant()
    def the_live_stream_alone_tells_it_all(self):
        """On a channel that loses nothing no reader ever needs the log."""
        if not hasattr(self, "rules"):
            return
        while (message := self.pubsub.get_message()) is not None:
            for job_id, kind, body in split_events(message["data"]):
                if job_id == self.job_id:
                    self.live.feed_line(kind, body)
        while self.live.pop() is not None:
            pass
        assert not self.live.wants_replay
        assert self.live.ended == self.rules.is_final
        result = self.live.result("m")
        assert result.token_ids == self.rules.tokens
        if self.live.ended:
            assert result.state == self.rules.state
            assert result.choices == self.store.read(self.job_id).result().choices


@pytest.mark.usefixtures("store")
def test_two_workers_and_one_client(store):
    TwoWorkersOneClient.store = store
    run_state_machine_as_test(
        TwoWorkersOneClient,
        settings=settings(
            max_examples=50, stateful_step_count=40, deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip
