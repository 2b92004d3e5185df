"""Tokens of a key's minute: each job is charged once, for what it computed, however it was read and ended."""

from __future__ import annotations

import contextlib
import signal
import time

import httpx
import pytest
from events import events_of

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
A_MINUTE = 60
"""One token comes back each second: what is left says what was charged, within seconds."""
PROMPT = 21


class Payer:
    """Who asks with a key of its own, and what is left of the key's minute."""

    def __init__(self, url, token, key, jobs):
        self.client = httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30)
        self._bucket, self._jobs, self._begun_at = keys.rate(key.key_id), jobs, time.monotonic()

    def stream(self, **options):
        body = {"model": "null", "messages": HI, "max_tokens": 100, "stream": True, **options}
        return self.client.stream("POST", CHAT, json=body)

    def charged(self, job_id):
        """How many tokens, once the job is closed; up to those that have come back meanwhile."""
        record = lambda: self._jobs.read(job_id, with_log=False)  # noqa: E731
        assert wait_until(lambda: (found := record()) is None or not found.fields["charge"], 20)
        return A_MINUTE - float(self._jobs.redis.hget(self._bucket, "tokens"))

    def is_charged(self, job_id, num_tokens):
        passed_s = time.monotonic() - self._begun_at
        return num_tokens - passed_s - 1 <= self.charged(job_id) <= num_tokens


@pytest.fixture
def payer(guarded_gateway, key_file, jobs):
    token, key = key_file.add(tenant="acme", tokens_per_minute=A_MINUTE)
    payer = Payer(guarded_gateway.url, token, key, jobs)
    assert wait_until(lambda: payer.client.get("/v1/models").status_code == 200, 10, 0.1)
    yield payer
    payer.client.close()


def begun(reply, count=3):
    """The job, and the rest of its events once so many have come."""
    events = events_of(reply.iter_lines())
    first = [next(events) for _ in range(count)]
    return first[0].data["id"], events


def test_a_whole_answer_and_a_stream(payer):
    body = {"model": "null", "messages": HI, "max_tokens": 9}
    answer = payer.client.post(CHAT, json=body)
    assert payer.is_charged(answer.json()["id"], PROMPT + 9)
    with payer.stream(max_tokens=5, n=2) as reply:
        job_id, rest = begun(reply)
        list(rest)
    assert payer.is_charged(job_id, PROMPT + 9 + PROMPT + 10)


def test_who_reads_at_another_connection_pays_too(payer):
    """The first connection is dropped while the second one reads: nothing is given back for that."""
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        job_id, events = begun(first.enter_context(payer.stream(max_tokens=100)))
        along = second.enter_context(payer.client.stream("GET", f"/v1/jobs/{job_id}/stream"))
        _, rest = begun(along)
        events.close()
        first.close()
        assert list(rest)[-1].data == "[DONE]"
    assert payer.is_charged(job_id, PROMPT + 100)


def test_what_goes_on_in_the_background(payer):
    body = {"model": "null", "messages": HI, "max_tokens": 7, "background": True}
    assert payer.is_charged(payer.client.post(CHAT, json=body).json()["id"], PROMPT + 7)


def test_a_client_that_leaves_pays_for_what_it_had(payer, jobs):
    with payer.stream(max_tokens=4000) as reply:
        job_id, _rest = begun(reply, 20)
    payer.charged(job_id)
    record = jobs.read(job_id, with_log=False)
    assert record.state is JobState.CANCELLED
    assert record.num_tokens[0] >= 10
    assert payer.is_charged(job_id, PROMPT + record.num_tokens[0])


def test_a_job_that_is_deleted_while_it_runs(payer):
    with payer.stream(max_tokens=4000) as reply:
        job_id, _rest = begun(reply, 60)
        assert payer.client.delete(f"/v1/jobs/{job_id}").status_code == 200
    assert payer.charged(job_id) > PROMPT + 20


@pytest.mark.parametrize("is_read_on", [True, False])
def test_a_gateway_that_dies(payer, start_gateway, key_file, jobs, is_read_on):
    """Another one goes on with its stream, or the sweeper ends the job."""
    doomed = start_gateway(keys_file=key_file.path)
    with httpx.Client(base_url=doomed.url, headers=payer.client.headers, timeout=30) as client:
        body = {"model": "null", "messages": HI, "max_tokens": 100 if is_read_on else 4000, "stream": True}
        with client.stream("POST", CHAT, json=body) as reply:
            job_id, _rest = begun(reply)
            (killed,) = jobs.read(job_id, with_log=False).clients
            doomed.send_signal(signal.SIGKILL)
            doomed.wait(60)
            if is_read_on:
                assert '"finish_reason":"length"' in payer.client.get(f"/v1/jobs/{job_id}/stream").text
            else:
                jobs.redis.delete(keys.client(killed))  # its lease has run out
            payer.charged(job_id)
    record = jobs.read(job_id, with_log=False)
    assert record.state is (JobState.DONE if is_read_on else JobState.CANCELLED)
    assert payer.is_charged(job_id, PROMPT + record.num_tokens[0])


def test_what_was_never_computed_costs_nothing(payer):
    body = {"model": "null", "prompt": ["a", "x" * 5000], "max_tokens": 9}
    reply = payer.client.post("/v1/completions", json=body)
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    # The first of the two may have got a few tokens before the other was refused.
    bucket = payer._bucket
    assert wait_until(lambda: float(payer._jobs.redis.hget(bucket, "tokens")) > A_MINUTE - 15, 10)
    for wrong in ({"model": "nobody"}, {"temperature": -1}):
        assert payer.client.post("/v1/completions", json={**body, **wrong}).status_code in (400, 404)
    assert wait_until(lambda: float(payer._jobs.redis.hget(bucket, "tokens")) > A_MINUTE - 15, 10)
