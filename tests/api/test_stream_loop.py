"""What a stream does next, without I/O."""

from __future__ import annotations

import time

import pytest

from pagefleet.api.client.events import LiveEvent, Resync
from pagefleet.api.client.stream import SILENCE_S, StreamState
from pagefleet.api.client.stream_loop import Action, StreamLoop
from pagefleet.api.contract.errors import RedisUnavailable, StreamTimeout
from pagefleet.api.contract.messages import AcceptedEvent, EndedEvent, JobState, LogEntry

TOKEN = LiveEvent("t", LogEntry(offset=0, token_ids=[7], texts=["x"]).to_json())
ACCEPTED = LiveEvent("a", AcceptedEvent(num_prompt_tokens=3, attempt=1).model_dump_json())
ENDED = LiveEvent(
    "e", EndedEvent(state=JobState.DONE, num_tokens=[1], finish_reasons=["length"]).model_dump_json()
)


class Kept(list):
    """Notes whether the job is to continue without its reader."""

    def __call__(self, keep):
        self.append(keep)


def new_loop(idle_timeout_s=60.0):
    kept = Kept()
    return StreamLoop(StreamState("j"), idle_timeout_s, kept), kept


def test_from_the_first_wait_to_the_end():
    loop, _kept = new_loop()
    assert loop.next_step() == SILENCE_S
    loop.take(ACCEPTED)
    assert loop.is_accepted
    loop.take(TOKEN)
    loop.take(ENDED)
    assert loop.next_step().text == "x"
    assert loop.next_step() is Action.END
    loop.is_closed = True
    assert loop.next_step() is None
    assert loop.next_event_step(None) is None


def test_silence_and_a_new_subscription_make_it_read_the_log():
    for event in (None, Resync()):
        loop, _kept = new_loop()
        assert not loop.take(event)
        assert loop.next_step() is Action.REPLAY


def test_only_a_new_subscription_repeats_a_cancel():
    loop, _kept = new_loop()
    loop.is_cancelled = True
    assert not loop.take(None)
    assert not loop.take(ACCEPTED)
    assert loop.take(Resync())


def test_a_poll_ends_at_its_own_time_and_reads_no_log_after_it():
    loop, kept = new_loop(idle_timeout_s=0.0)
    assert 0 < loop.next_step(time.monotonic() + 1) <= 1
    loop.take(Resync())
    assert loop.next_step(time.monotonic() + 1) is Action.REPLAY
    assert loop.next_step(time.monotonic()) is None
    assert kept == []


def test_after_the_idle_timeout_the_job_continues_until_the_caller_reads_on():
    loop, kept = new_loop(idle_timeout_s=0.0)
    with pytest.raises(StreamTimeout, match="Nothing came from job j for 0 s") as raised:
        loop.next_step()
    assert (raised.value.job_id, kept) == ("j", [True])
    loop.start_call()
    assert kept == [True, False]
    loop.start_call()
    assert kept == [True, False]


def test_an_outage_is_waited_for_longer_each_time_and_then_raised():
    loop, kept = new_loop(idle_timeout_s=None)
    away = RedisUnavailable("away")
    waits = [loop.retry_delay(away) for _ in range(50)]
    assert 0.1 <= waits[0] <= 0.2
    assert all(0.25 <= wait <= 0.5 for wait in waits[2:])
    assert len(set(waits)) > 40, "clients must not retry in step"
    loop, kept = new_loop(idle_timeout_s=0.05)
    assert loop.retry_delay(away) <= 0.05
    loop, kept = new_loop(idle_timeout_s=0.0)
    with pytest.raises(RedisUnavailable, match="away"):
        loop.retry_delay(away)
    assert kept == [True]


def test_an_outage_is_not_raised_to_a_caller_who_waits_for_a_given_time():
    loop, kept = new_loop(idle_timeout_s=0.0)
    away = RedisUnavailable("away")
    assert 0 < loop.retry_delay(away, time.monotonic() + 5.0) <= 0.5
    assert loop.retry_delay(away, time.monotonic()) == 0.0
    assert kept == []
