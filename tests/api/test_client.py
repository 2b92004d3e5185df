"""FleetClient against a real Valkey and a real worker process, whose engine makes its tokens up.

A null token takes 5 ms, so a job of 100 tokens runs for half a second: time enough to do things to it.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import uuid

import pytest
from celery.exceptions import TaskRevokedError

from pagefleet.api import (
    ContextTooLong,
    FleetClient,
    FleetSettings,
    InvalidRequest,
    JobNotFound,
    JobState,
    QueueFull,
    StreamTimeout,
    UnknownModel,
    UnknownParameter,
)
from pagefleet.api.broker.celery_app import make_celery
from pagefleet.api.client import stream_loop
from pagefleet.api.client.synchronous import inbox
from pagefleet.api.contract import keys
from pagefleet.api.protocol.job_store import JobStore

SEED_7 = 'zF E;@l9!Uhk= 4"'
SEED_7_IDS = list(SEED_7.encode())


def new_id():
    return f"test-{uuid.uuid4().hex}"


def wait_until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@pytest.fixture
def server(null_stack):
    """The server's own view, past the client."""
    store = JobStore(FleetSettings(redis_url=null_stack.redis_url))
    yield store
    store.close_connections()


@pytest.fixture
def results(null_stack):
    """Celery's view, as a service has it that knows only Celery."""
    app = make_celery(FleetSettings(redis_url=null_stack.redis_url))
    yield app.AsyncResult
    app.close()


class TestGenerate:
    def test_iterating_gives_chunks_that_join_to_the_text(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        chunks = list(stream)
        assert "".join(chunk.text for chunk in chunks) == SEED_7
        assert [token for chunk in chunks for token in chunk.token_ids] == SEED_7_IDS
        assert [chunk.offset for chunk in chunks] == [
            sum(len(earlier.token_ids) for earlier in chunks[:index]) for index in range(len(chunks))
        ]
        assert len(chunks) > 1, "it is a stream"
        assert chunks[-1].finish_reason == "length"
        assert {chunk.choice for chunk in chunks} == {0}
        assert list(stream) == []

    def test_the_first_chunk_comes_before_the_last_token_exists(self, fleet, server):
        stream = fleet.generate("Hello", max_tokens=400)
        next(stream)
        assert server.read(stream.job_id).state is JobState.RUNNING
        stream.cancel()
        stream.close()

    def test_the_result_is_everything(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        result = stream.result()
        assert (result.job_id, result.model, result.state) == (stream.job_id, "null", JobState.DONE)
        assert (result.text, result.token_ids, result.finish_reason) == (SEED_7, SEED_7_IDS, "length")
        assert (result.num_prompt_tokens, result.attempts, result.error) == (6, 1, None)
        assert stream.num_prompt_tokens == 6
        assert stream.result() == result

    def test_the_text_after_some_chunks_is_still_the_whole_text(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        next(stream)
        assert stream.text() == SEED_7

    def test_token_ids_are_a_prompt_too(self, fleet):
        result = fleet.generate(prompt_token_ids=(72, 105), seed=7, max_tokens=4).result()
        assert (result.num_prompt_tokens, result.text) == (2, SEED_7[:4])

    def test_chat_goes_through_the_workers_template(self, fleet):
        result = fleet.chat([{"role": "user", "content": "Hi"}], seed=7, max_tokens=4).result()
        # <bos> + "user: Hi\n" + "assistant: "
        assert (result.num_prompt_tokens, result.text) == (1 + 9 + 11, SEED_7[:4])

    def test_a_stop_string_ends_it(self, fleet):
        stop_at = SEED_7.index("l9!")
        result = fleet.generate("Hello", seed=7, max_tokens=16, stop="l9!").result()
        assert (result.text, result.finish_reason) == (SEED_7[:stop_at], "stop")
        assert result.choices[0].stop_reason == "l9!"

    def test_seeds_are_reproducible_and_a_missing_one_is_drawn(self, fleet):
        texts = [fleet.generate("Hello", max_tokens=16, seed=seed).text() for seed in (7, 7, 8, None, None)]
        assert texts[0] == texts[1] == SEED_7
        assert len(set(texts)) == 4

    def test_the_largest_seed_works(self, fleet):
        assert len(fleet.generate("Hello", seed=2**64 - 1, max_tokens=2).text()) == 2

    def test_many_streams_of_one_client_do_not_mix(self, fleet):
        streams = [fleet.generate("Hello", seed=seed, max_tokens=20) for seed in range(12)]
        together = [stream.text() for stream in reversed(streams)][::-1]
        assert together == [fleet.generate("Hello", seed=s, max_tokens=20).text() for s in range(12)]
        assert len(set(together)) == 12

    def test_two_clients_at_once(self, null_stack):
        with (
            FleetClient(redis_url=null_stack.redis_url) as one,
            FleetClient(redis_url=null_stack.redis_url) as other,
        ):
            first = one.generate("Hello", seed=7, max_tokens=16)
            second = other.generate("Hello", seed=7, max_tokens=16)
            assert (second.text(), first.text()) == (SEED_7, SEED_7)

    def test_the_batch_lane_works_too(self, fleet):
        assert fleet.generate("Hello", seed=7, max_tokens=4, lane="batch").text() == SEED_7[:4]

    def test_a_client_that_was_closed_opens_again(self, null_stack):
        client = FleetClient(redis_url=null_stack.redis_url)
        for _ in range(2):
            assert client.generate("Hello", seed=7, max_tokens=4).text() == SEED_7[:4]
            client.close()

    def test_celery_has_the_same_result(self, fleet, results):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        value = results(stream.job_id).get(timeout=30)
        assert (value["state"], value["choices"][0]["text"]) == ("D", SEED_7)
        assert value["enqueued_at"] <= value["claimed_at"] <= value["first_token_at"] <= value["ended_at"]
        # And the stream, never touched meanwhile, has it all as well.
        assert stream.text() == SEED_7


class TestModels:
    def test_without_a_name_the_only_model_is_meant(self, fleet):
        assert fleet.generate("Hello", max_tokens=1).model == "null"

    def test_with_two_models_a_name_is_needed(self, fleet, ghost):
        with pytest.raises(UnknownModel, match="this fleet has several models; choose one of ghost, null"):
            fleet.generate("Hello")
        assert fleet.generate("Hello", model="null", seed=7, max_tokens=4).text() == SEED_7[:4]

    def test_an_alias_is_resolved_in_the_producer(self, fleet, ghost, server):
        stream = fleet.generate("Hello", model="spirit")
        assert stream.model == "ghost"
        record = server.read(stream.job_id)
        assert (record.request().model, record.queue) == ("ghost", "pagefleet.ghost.interactive")

    def test_cards_are_listed(self, fleet, ghost):
        assert [card.name for card in fleet.models()] == ["ghost", "null"]


class TestBadRequests:
    """One clear sentence, in the producer, and nothing on the server."""

    @pytest.mark.parametrize(
        ("fields", "error", "param"),
        [
            ({"model": "nobody"}, UnknownModel, "model"),
            ({"model": 5}, InvalidRequest, "model"),
            ({"prompt": ""}, InvalidRequest, "prompt"),
            ({"prompt": 5}, InvalidRequest, "prompt"),
            ({"prompt": None}, InvalidRequest, None),
            ({"prompt": None, "prompt_token_ids": []}, InvalidRequest, "prompt_token_ids"),
            ({"prompt": None, "prompt_token_ids": 5}, InvalidRequest, "prompt_token_ids"),
            ({"prompt": None, "prompt_token_ids": [1] * 4096}, ContextTooLong, "prompt_token_ids"),
            ({"prompt": None, "prompt_token_ids": [259]}, InvalidRequest, "prompt_token_ids"),
            ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
            ({"max_tokens": 4097}, InvalidRequest, "max_tokens"),
            ({"max_tokens": "8"}, InvalidRequest, "max_tokens"),
            ({"min_tokens": 9, "max_tokens": 8}, InvalidRequest, "min_tokens"),
            ({"max_token": 8}, UnknownParameter, "max_token"),
            ({"lane": "fast"}, InvalidRequest, "lane"),
            ({"priority": 10}, InvalidRequest, "priority"),
            ({"deadline_s": float("inf")}, InvalidRequest, "deadline_s"),
            ({"job_id": ""}, InvalidRequest, "job_id"),
            ({"job_id": "a b"}, InvalidRequest, "job_id"),
            ({"job_id": "a\nb"}, InvalidRequest, "job_id"),
            ({"job_id": "x" * 256}, InvalidRequest, "job_id"),
            ({"job_id": "\ud800"}, InvalidRequest, "job_id"),
            ({"job_id": 5}, InvalidRequest, "job_id"),
        ],
    )
    def test_generate(self, fleet, server, fields, error, param):
        before = set(server.redis.keys("pf:job:*"))
        with pytest.raises(error) as raised:
            fleet.generate(**{"prompt": "Hello", **fields})
        assert type(raised.value) is error
        assert raised.value.param == param
        assert "\n" not in raised.value.message
        assert set(server.redis.keys("pf:job:*")) <= before

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"),
            ("Hello", "messages"),
            (None, None),
            (5, "messages"),
            ({"role": "user", "content": "x"}, "messages"),
            (["Hello"], "messages.0"),
            ([{"role": "user"}], "messages.0.content"),
            ([{"role": "user", "content": None}], "messages.0.content"),
        ],
    )
    def test_chat(self, fleet, messages, param):
        with pytest.raises(InvalidRequest) as raised:
            fleet.chat(messages)
        assert raised.value.param == param

    def test_a_text_that_turns_out_too_long_is_rejected_by_the_worker(self, fleet, results):
        """The producer has no tokenizer; the same error comes as the stream's first event."""
        stream = fleet.generate("x" * 5000)
        with pytest.raises(ContextTooLong, match="prompt: 5001 tokens do not fit") as raised:
            next(stream)
        assert (raised.value.param, raised.value.job_id) == ("prompt", stream.job_id)
        for again in (stream.result, stream.text):
            with pytest.raises(ContextTooLong):
                again()
        with pytest.raises(ContextTooLong, match="prompt: 5001 tokens do not fit"):
            results(stream.job_id).get(timeout=30)

    def test_a_full_queue_refuses_and_writes_nothing(self, fleet, ghost, server):
        jobs = [fleet.generate("Hello", model=ghost, lane="batch") for _ in range(3)]
        refused = new_id()
        with pytest.raises(
            QueueFull, match=r"The queue pagefleet\.ghost\.batch holds 3 jobs, its limit"
        ) as raised:
            fleet.generate("Hello", model=ghost, lane="batch", job_id=refused)
        assert raised.value.job_id == refused
        assert server.read(refused) is None
        (queue,) = [queue for queue in fleet.status().queues if queue.name == "pagefleet.ghost.batch"]
        assert (queue.num_queued, queue.num_open) == (3, 3)
        # The other lane has room, and so has this one after a cancel.
        fleet.generate("Hello", model=ghost)
        fleet.cancel(jobs[0].job_id)
        fleet.generate("Hello", model=ghost, lane="batch")


class TestJobIds:
    def test_the_same_id_reads_the_first_calls_job(self, fleet):
        job_id = new_id()
        first = fleet.generate("Hello", seed=7, max_tokens=16, job_id=job_id)
        again = fleet.generate("Hello", seed=7, max_tokens=16, job_id=job_id)
        assert (first.text(), again.text()) == (SEED_7, SEED_7)
        assert fleet.generate("Hello", seed=7, max_tokens=16, job_id=job_id).text() == SEED_7

    def test_the_first_stream_stays_live_when_the_id_comes_again(self, fleet, live_only):
        """It does not depend on the log, which it reads after some silence."""
        job_id = new_id()
        first = fleet.generate("Hello", max_tokens=400, job_id=job_id)
        fleet.generate("Hello", max_tokens=400, job_id=job_id).close()
        started = time.monotonic()
        for _ in range(20):
            next(first)
        assert time.monotonic() - started < live_only
        first.cancel()
        first.close()

    def test_two_clients_with_the_same_id_make_one_job(self, fleet, null_stack):
        job_id = new_id()
        with FleetClient(redis_url=null_stack.redis_url) as other:
            streams = [client.generate("Hello", job_id=job_id, max_tokens=30) for client in (fleet, other)]
            texts = [stream.text() for stream in streams]
        assert texts[0] == texts[1]
        assert len(texts[0]) == 30


class TestAttach:
    def test_to_a_running_job(self, fleet, null_stack):
        stream = fleet.generate("Hello", max_tokens=60)
        next(stream)
        with FleetClient(redis_url=null_stack.redis_url) as other:
            attached = other.attach(stream.job_id)
            assert attached.model == "null"
            chunks = list(attached)
            assert "".join(chunk.text for chunk in chunks) == stream.text()
            assert len(chunks) > 5, "live, not one replay"

    @pytest.mark.parametrize("after", [0, 1, 7, 15, 16, 99])
    def test_after_the_end_from_any_token(self, fleet, after):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        stream.result()
        attached = fleet.attach(stream.job_id, after=after)
        chunks = list(attached)
        assert "".join(chunk.text for chunk in chunks) == SEED_7[after:]
        assert attached.result().text == SEED_7

    def test_in_mid_stream_from_any_token(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        seen = next(stream)
        rest = fleet.attach(stream.job_id, after=len(seen.token_ids))
        assert seen.text + "".join(chunk.text for chunk in rest) == SEED_7

    def test_to_a_queued_job_from_before_its_first_token(self, fleet, ghost):
        stream = fleet.generate("Hello", model=ghost)
        attached = fleet.attach(stream.job_id, idle_timeout=60)
        fleet.cancel(stream.job_id)
        result = attached.result()
        assert (result.state, result.finish_reason, result.token_ids) == (JobState.CANCELLED, "cancelled", [])

    def test_from_another_process(self, fleet, null_stack):
        stream = fleet.generate("Hello", seed=7, max_tokens=100)
        next(stream)
        program = (
            "import sys; from pagefleet.api import FleetClient; "
            "print(FleetClient(redis_url=sys.argv[1]).attach(sys.argv[2]).result().model_dump_json())"
        )
        other = subprocess.run(
            [sys.executable, "-c", program, null_stack.redis_url, stream.job_id],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert json.loads(other.stdout)["choices"][0]["text"] == stream.text()

    def test_a_rejected_job_raises_for_its_late_readers_too(self, fleet):
        stream = fleet.generate("x" * 5000)
        with pytest.raises(ContextTooLong):
            stream.result()
        with pytest.raises(ContextTooLong):
            fleet.attach(stream.job_id).result()

    def test_to_nothing(self, fleet):
        with pytest.raises(JobNotFound, match="There is no job 'nothing'") as raised:
            fleet.attach("nothing")
        assert raised.value.job_id == "nothing"

    def test_after_so_many_tokens_of_each_choice(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16, n=3)
        whole = [choice.text for choice in stream.result().choices]
        rest = ["", "", ""]
        attached = fleet.attach(stream.job_id, after=[3, 16, 0], keep=False)
        for chunk in attached:
            rest[chunk.choice] += chunk.text
        assert rest == [whole[0][3:], "", whole[2]]
        assert attached.result().token_ids == [], "nothing was kept"

    def test_many_readers_share_the_clients_connection(self, fleet, null_stack, server):
        def num_listening():
            return len(server.redis.client_list(_type="pubsub"))

        with FleetClient(redis_url=null_stack.redis_url) as other:
            streams = [other.generate("Hello", seed=seed, max_tokens=150) for seed in range(3)]
            fleet.models()
            before = num_listening()
            attached = [fleet.attach(stream.job_id) for stream in streams for _ in range(2)]
            channels = [keys.job_channel(stream.job_id) for stream in streams]
            wait_until(lambda: all(count == 1 for _, count in server.redis.pubsub_numsub(*channels)))
            assert num_listening() == before
            assert [stream.text() for stream in attached] == [s.text() for s in streams for _ in range(2)]
        wait_until(lambda: not any(count for _, count in server.redis.pubsub_numsub(*channels)))

    def test_the_old_name_of_idle_timeout_and_others_are_refused(self, fleet):
        with pytest.raises(UnknownParameter, match="timeout: unknown parameter; use idle_timeout"):
            fleet.attach("j", timeout=5)
        with pytest.raises(TypeError, match="unexpected keyword argument 'until'"):
            fleet.attach("j", until=5)


class TestCancel:
    def test_a_queued_job(self, fleet, ghost, server, results):
        stream = fleet.generate("Hello", model=ghost)
        assert fleet.cancel(stream.job_id) is True
        result = stream.result()
        assert (result.state, result.finish_reason, result.text) == (JobState.CANCELLED, "cancelled", "")
        # Closed by this client, as no worker would: out of the ledger, with an expiry and a Celery result.
        assert server.redis.zcard(keys.open_jobs("pagefleet.ghost.interactive")) == 0
        assert server.redis.ttl(keys.job(stream.job_id)) > 0
        with pytest.raises(TaskRevokedError):
            results(stream.job_id).get(timeout=60)

    def test_a_running_job(self, fleet, server):
        stream = fleet.generate("Hello", max_tokens=2000)
        next(stream)
        assert fleet.cancel(stream.job_id) is True
        result = stream.result()
        assert (result.state, result.finish_reason) == (JobState.CANCELLED, "cancelled")
        assert 0 < len(result.token_ids) < 1000
        assert server.read(stream.job_id).result().token_ids == result.token_ids

    def test_through_its_own_stream(self, fleet):
        stream = fleet.generate("Hello", max_tokens=2000)
        seen = next(stream).text
        stream.cancel()
        seen += "".join(chunk.text for chunk in stream)
        assert stream.result().text == seen
        assert stream.result().state is JobState.CANCELLED

    def test_an_ended_job_stays_as_it_is(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        stream.result()
        assert fleet.cancel(stream.job_id) is False
        stream.cancel()
        assert fleet.attach(stream.job_id).result().state is JobState.DONE

    def test_nothing(self, fleet):
        with pytest.raises(JobNotFound):
            fleet.cancel("nothing")


class TestTime:
    def test_a_stream_that_no_worker_serves_gives_up_and_the_job_stays_queued(self, fleet, ghost, server):
        stream = fleet.generate("Hello", model=ghost, idle_timeout=0.3)
        started = time.monotonic()
        with pytest.raises(StreamTimeout, match=f"Nothing came from job {stream.job_id} for 0.3 s") as raised:
            next(stream)
        assert 0.3 <= time.monotonic() - started < 5
        assert isinstance(raised.value, TimeoutError)
        assert raised.value.job_id == stream.job_id
        assert server.read(stream.job_id).state is JobState.QUEUED
        (queue,) = [queue for queue in fleet.status().queues if queue.name == "pagefleet.ghost.interactive"]
        assert (queue.num_queued, queue.num_open) == (1, 1)

    def test_a_slow_reader_is_not_a_silent_job(self, fleet):
        """What the caller does between two chunks is no waiting."""
        stream = fleet.generate("Hello", seed=7, max_tokens=16, idle_timeout=1.0)
        text = next(stream).text
        time.sleep(1.3)
        assert text + "".join(chunk.text for chunk in stream) == SEED_7

    def test_a_stream_that_is_first_read_late(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16, idle_timeout=1.0)
        time.sleep(1.3)
        assert stream.text() == SEED_7

    def test_a_deadline_ends_a_running_job_with_what_there_was(self, fleet):
        result = fleet.generate("Hello", max_tokens=2000, deadline_s=1.5).result()
        assert (result.state, result.finish_reason) == (JobState.FAILED, "deadline")
        assert 0 < len(result.token_ids) < 1500


class TestPolling:
    def test_a_poll_without_a_chunk_is_no_timeout(self, fleet, ghost):
        stream = fleet.generate("Hello", model=ghost, idle_timeout=0.1)
        assert stream.poll(0.3) is None
        assert not stream.has_ended
        fleet.cancel(stream.job_id)
        assert stream.poll(10) is None
        assert stream.has_ended

    def test_polls_give_the_chunks(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=16)
        text = ""
        while not stream.has_ended:
            chunk = stream.poll(10)
            text += "" if chunk is None else chunk.text
        assert text == SEED_7

    def test_accepted_waits_for_a_worker(self, fleet, ghost):
        assert fleet.generate("Hello", model="null", max_tokens=4).accepted(10)
        waiting = fleet.generate("Hello", model=ghost)
        assert not waiting.accepted(0.1)
        waiting.close()
        rejected = fleet.generate("x" * 5000, model="null")
        with pytest.raises(ContextTooLong):
            rejected.accepted(10)

    def test_another_thread_closes_a_stream_that_waits(self, fleet, ghost, live_only):
        stream = fleet.generate("Hello", model=ghost)
        threading.Timer(0.2, stream.close).start()
        began_at = time.monotonic()
        assert list(stream) == []
        assert time.monotonic() - began_at < live_only, "it is woken"


class TestAbandoned:
    def test_a_stream_that_was_dropped_half_way_leaves_nothing_behind(self, fleet):
        """A service whose users go away must not collect their tokens for ever. A detached job goes on."""
        stream = fleet.generate("Hello", seed=7, max_tokens=100, detached=True)
        job_id = stream.job_id
        next(stream)
        routes = fleet._live.subscriber.routes
        assert job_id in routes
        del stream
        gc.collect()
        assert job_id not in routes
        assert len(fleet.attach(job_id).text()) == 100

    def test_a_stream_that_is_left_running_ends_and_its_job_goes_on(self, fleet):
        stream = fleet.generate("Hello", seed=7, max_tokens=100)
        next(stream)
        assert stream.leave_running() == stream.job_id
        assert list(stream) == []
        assert len(fleet.attach(stream.job_id).text()) == 100


class TestWhatAClientHolds:
    def test_its_thread_has_ended_when_close_returns(self, null_stack):
        client = FleetClient(redis_url=null_stack.redis_url)
        client.models()
        thread = client._live.subscriber._thread
        assert thread.is_alive()
        begun_at = time.monotonic()
        client.close()
        assert not thread.is_alive()
        assert time.monotonic() - begun_at < 10

    def test_its_thread_ends_with_a_client_that_nobody_closes(self, null_stack):
        stream = FleetClient(redis_url=null_stack.redis_url).generate("Hello", seed=7, max_tokens=16)
        thread = stream._source._live.subscriber._thread
        gc.collect()
        assert stream.text() == SEED_7
        del stream
        gc.collect()
        thread.join(60)
        assert not thread.is_alive()

    def test_no_hook_at_fork_that_is_its_own(self, null_stack, monkeypatch):
        """Such a hook is never given back."""
        hooks = []
        monkeypatch.setattr(os, "register_at_fork", lambda **hook: hooks.append(hook))
        for _ in range(3):
            FleetClient(redis_url=null_stack.redis_url)
        assert hooks == []

    def test_what_a_slow_reader_does_not_read_is_not_kept(self, fleet, server, monkeypatch):
        monkeypatch.setattr(inbox.Inbox.__init__, "__defaults__", (10,))
        stream = fleet.generate("Hello", seed=7, max_tokens=60)
        next(stream)
        while server.read(stream.job_id, with_log=False).state is not JobState.DONE:
            assert len(stream._source._inbox) <= 10
            time.sleep(0.02)
        assert len(stream.text()) == 60


def test_the_job_and_its_workers(fleet, ghost):
    stream = fleet.generate("Hello", model="null", seed=7, max_tokens=16)
    stream.result()
    record = fleet.job(stream.job_id)
    assert (record.state, len(record.entries) > 0) == (JobState.DONE, True)
    assert not fleet.job(stream.job_id, with_log=False).entries
    with pytest.raises(JobNotFound):
        fleet.job("nothing")
    assert [worker.model for worker in fleet.workers()] == ["null"]
    assert fleet.card("spirit").name == "ghost"


class TestStatus:
    def test_it_shows_the_worker_and_what_runs(self, fleet):
        stream = fleet.generate("Hello", max_tokens=400)
        next(stream)
        status = fleet.status()
        (worker,) = status.workers
        (job,) = [job for job in status.running if job.job_id == stream.job_id]
        assert (job.model, job.worker_id, job.attempts) == ("null", worker.worker_id, 1)
        assert job.num_tokens >= 1
        assert job.running_s < 60
        assert worker.model == "null"
        assert [queue.name for queue in status.queues] == [
            "pagefleet.null.interactive",
            "pagefleet.null.batch",
        ]
        stream.cancel()
        stream.result()
        wait_until(lambda: not any(job.job_id == stream.job_id for job in fleet.status().running))

    @pytest.mark.parametrize("priority", [0, 5, 9])
    def test_a_waiting_job_of_any_priority_is_counted(self, fleet, ghost, priority):
        waiting = fleet.generate("Hello", model=ghost, priority=priority)
        (queue,) = [queue for queue in fleet.status().queues if queue.name == "pagefleet.ghost.interactive"]
        assert queue.num_queued == 1
        waiting.close()


def test_a_fleet_is_found_without_a_setting(null_stack, monkeypatch, tmp_path):
    """`pagefleet up` leaves a note; REDIS_URL goes before it."""
    monkeypatch.setenv("PAGEFLEET_HOME", str(tmp_path))
    null_stack.write_stack_file(tmp_path / "stack.json")
    with FleetClient() as client:
        assert client.generate("Hello", seed=7, max_tokens=4).text() == SEED_7[:4]
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert FleetSettings().url == "redis://127.0.0.1:1/0"


def test_a_reader_that_waits_asks_for_no_prompt_and_for_no_token_twice(fleet, ghost, server, monkeypatch):
    """Bytes that the server sends and receives for one look of a queued job with a prompt of 50 KB."""
    monkeypatch.setattr(stream_loop, "SILENCE_S", 0.02)
    stream = fleet.generate("x" * 50_000, model=ghost, idle_timeout=0.5)

    def traffic():
        stats = server.redis.info("stats")
        return stats["total_net_input_bytes"] + stats["total_net_output_bytes"], num_looks

    num_looks = 0
    look = stream._source.read

    def counted(position):
        nonlocal num_looks
        num_looks += 1
        return look(position)

    stream._source.read = counted
    before = traffic()
    with pytest.raises(StreamTimeout):
        next(stream)
    num_bytes, looks = (now - then for now, then in zip(traffic(), before, strict=True))
    assert looks > 5
    assert num_bytes / looks < 5000
    stream.cancel()


def test_a_look_into_a_long_log_reads_its_rest(fleet, server):
    stream = fleet.generate("Hello", seed=7, max_tokens=300)
    for _ in range(20):
        next(stream)
    seen = stream._state.position
    assert seen.num_entries >= 20
    record = server.read_after(stream.job_id, seen)
    assert (record.after, record.fields["request"]) == (seen, "")
    assert all(entry.offset >= 20 for entry in record.entries)
    stream._state.wants_replay = True
    assert len(stream.text()) == 300
