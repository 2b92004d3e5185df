"""/v1/jobs: an answer belongs to the queue, not to the connection or the gateway that it began at."""

from __future__ import annotations

import contextlib
import json
import signal
import socket

import httpx
import pytest
from events import events_of, text_of

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState
from pagefleet.engine.execution.null_executor import null_token
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
WHOLE = {"model": "null", "messages": HI}


def expected(seed, count, choice=0):
    return "".join(chr(null_token(seed, choice, position)) for position in range(count))


def chat(*, usage=False, **options):
    """Of a reader that can return."""
    asked = {"include_ids": True, "include_usage": usage}
    return {"model": "null", "messages": HI, "stream": True, "stream_options": asked, **options}


def take(events, count):
    """So many events with data; the stream stays where it is."""
    found = []
    while len(found) < count:
        event = next(events)
        if event.id:
            found.append(event)
    return found


def is_gone(jobs, job_id, states=(JobState.CANCELLED,)):
    return wait_until(lambda: jobs.read(job_id, with_log=False).state in states, 60)


def rest_of(url, job_id, last_id, *, by_header=True):
    """What another gateway says after an event."""
    headers = {"Last-Event-ID": last_id} if by_header else {}
    params = {} if by_header else {"after": last_id}
    with (
        httpx.Client(base_url=url, timeout=30) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/stream", headers=headers, params=params) as reply,
    ):
        assert reply.status_code == 200
        return [event for event in events_of(reply.iter_lines()) if event.id or event.data == "[DONE]"]


def test_every_event_has_an_id_that_says_how_far_the_reader_is(http):
    with http.stream("POST", "/v1/chat/completions", json=chat(max_tokens=9, n=2, seed=7)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, done = [
            event for event in events_of(reply.iter_lines()) if event.id or event.data == "[DONE]"
        ]
    assert (events[0].id, events[-1].id, done.data) == ("0.0", "9.9", "[DONE]")
    assert all(event.id for event in events)


@pytest.mark.parametrize(("options", "by_header"), [({"n": 1}, True), ({"n": 3, "usage": True}, False)])
def test_a_gateway_is_killed_in_mid_stream_and_another_goes_on(start_gateway, gateway, options, by_header):
    """kill -9: what the one said and what the other says after the last event's id is the whole answer."""
    doomed = start_gateway()
    with (
        httpx.Client(base_url=doomed.url, timeout=30) as client,
        client.stream("POST", "/v1/chat/completions", json=chat(max_tokens=600, seed=7, **options)) as reply,
    ):
        events = events_of(reply.iter_lines())
        seen = take(events, 20)
        doomed.send_signal(signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            seen += [event for event in events if event.id]
    job_id = seen[0].data["id"]
    *rest, done = rest_of(gateway.url, job_id, seen[-1].id, by_header=by_header)
    assert done.data == "[DONE]"
    for choice in range(options["n"]):
        assert text_of(seen + rest, choice) == expected(7, 600, choice)
    finished = [each["index"] for event in rest for each in event.data["choices"] if each["finish_reason"]]
    assert sorted(finished) == list(range(options["n"]))
    used = [event.data["usage"] for event in rest if event.data.get("usage")]
    assert [each["completion_tokens"] for each in used] == ([1800] if "usage" in options else [])
    assert {event.data["created"] for event in seen + rest} == {seen[0].data["created"]}


def test_a_stream_of_several_prompts_goes_on_too(gateway, http):
    body = {"model": "null", "prompt": ["a", "b"], "max_tokens": 200, "seed": 7, "stream": True}
    body["stream_options"] = {"include_ids": True}
    with http.stream("POST", "/v1/completions", json={**body, "background": True}) as reply:
        seen = take(events_of(reply.iter_lines()), 20)
    answer_id = seen[0].data["id"]
    *rest, _done = rest_of(gateway.url, answer_id, seen[-1].id)
    assert [text_of(seen + rest, choice) for choice in (0, 1)] == [expected(7, 200)] * 2
    shown = http.get(f"/v1/jobs/{answer_id}").json()
    assert shown["status"] == "completed"
    assert [choice["text"] for choice in shown["result"]["choices"]] == [expected(7, 200)] * 2
    assert http.delete(f"/v1/jobs/{answer_id}").json() == {"id": answer_id, "object": "job", "deleted": True}
    assert http.get(f"/v1/jobs/{answer_id}").status_code == 404


def read_slowly(gateway, body, is_time):
    """Reads nothing until it is time, then a part of it, and leaves; gives the whole events of that part."""
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", gateway.port))
        connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        seen = b""
        while b"data: " not in seen:
            seen += connection.recv(4096)
        is_time(seen.split(b"x-pagefleet-job: ")[1].split(b"\r\n")[0].decode())
        while len(seen) < 500_000:
            seen += connection.recv(4096)
    return [event for event in events_of(seen.decode().split("\n")) if event.id]


def test_a_slow_reader_of_several_prompts_goes_on_without_a_gap(gateway, http, jobs):
    """No event's id counts tokens of an event that still waits for the reader."""
    body = {"model": "null", "prompt": ["a"] * 8, "max_tokens": 400, "seed": 7, "logprobs": 2}
    body["stream_options"] = {"include_ids": True}

    def all_have_ended(answer_id):
        assert wait_until(lambda: http.get(f"/v1/jobs/{answer_id}").json()["status"] == "completed", 60)

    seen = read_slowly(gateway, {**body, "stream": True, "background": True}, all_have_ended)
    lengths = [len(text_of(seen, choice)) for choice in range(8)]
    assert seen[-1].id == ".".join(map(str, lengths)), "an id says what the reader has"
    assert min(lengths) > 0, "no choice waits for another one's end"
    assert max(lengths) < 400
    *rest, _done = rest_of(gateway.url, seen[0].data["id"], seen[-1].id)
    assert [text_of(seen + rest, choice) for choice in range(8)] == [expected(7, 400)] * 8


def test_all_of_an_ended_answer_again(gateway, ai):
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=16, seed=7)
    events = rest_of(gateway.url, answer.id, "0")
    assert text_of(events) == expected(7, 16)
    assert text_of(rest_of(gateway.url, answer.id, "12")) == expected(7, 16)[12:]
    assert text_of(rest_of(gateway.url, answer.id, "16")) == ""


def test_a_browser_that_reconnects_goes_on_where_it_was(http, ai):
    """It asks the address that it was given, and says in the header what it has had since."""
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=16, seed=7)
    place, header = f"/v1/jobs/{answer.id}/stream?after=3", {"Last-Event-ID": "10"}
    with http.stream("GET", place, headers=header) as reply:
        assert text_of(events_of(reply.iter_lines())) == expected(7, 16)[10:]


@pytest.mark.parametrize("after", ["x", "-1", "1.2", "9" * 40, "1..2"])
def test_what_is_no_events_id(http, ai, after):
    answer = ai.chat.completions.create(model="null", messages=HI, max_tokens=1)
    reply = http.get(f"/v1/jobs/{answer.id}/stream", params={"after": after})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "after")


def test_a_client_that_leaves_ends_its_job(http, jobs):
    with http.stream("POST", "/v1/chat/completions", json=chat(max_tokens=4000)) as reply:
        job_id = take(events_of(reply.iter_lines()), 5)[0].data["id"]
    assert is_gone(jobs, job_id)
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


@pytest.fixture
def taken_over(http, start_gateway, jobs):
    """A job that is read at one gateway since the other one, which still seems to live, was killed: its id,
    the dead gateway's key, and a function that leaves it."""
    doomed = start_gateway()
    with contextlib.ExitStack() as along, contextlib.ExitStack() as first:
        client = first.enter_context(httpx.Client(base_url=doomed.url, timeout=30))
        stream = client.stream("POST", "/v1/chat/completions", json=chat(max_tokens=4000))
        events = events_of(first.enter_context(stream).iter_lines())
        job_id = take(events, 5)[0].data["id"]
        (killed,) = jobs.read(job_id, with_log=False).clients
        with http.stream("GET", f"/v1/jobs/{job_id}/stream") as passing:
            take(events_of(passing.iter_lines()), 5)
        # Who reads along at another gateway ends nothing, as long as the first one reads.
        assert wait_until(lambda: jobs.read(job_id, with_log=False).clients == [killed], 60)
        take(events, 20)
        assert jobs.read(job_id, with_log=False).state is JobState.RUNNING
        rest = events_of(along.enter_context(http.stream("GET", f"/v1/jobs/{job_id}/stream")).iter_lines())
        take(rest, 5)
        doomed.send_signal(signal.SIGKILL)
        doomed.wait(60)

        def leave():
            # Not earlier: the connection ends with the last that iterates it.
            rest.close()
            along.close()

        yield job_id, keys.client(killed), leave


def test_a_job_ends_with_its_last_reader(jobs, taken_over):
    job_id, killed, leave = taken_over
    jobs.redis.delete(killed)  # its lease has run out
    leave()
    assert is_gone(jobs, job_id)


def test_also_where_the_last_one_leaves_before_the_death_of_its_gateway_is_known(jobs, taken_over):
    job_id, killed, leave = taken_over
    assert jobs.redis.exists(killed)
    leave()
    assert wait_until(lambda: killed.endswith(jobs.read(job_id, with_log=False).fields["clients"]), 60)
    assert jobs.read(job_id, with_log=False).state is JobState.RUNNING
    jobs.redis.delete(killed)
    assert wait_until(lambda: jobs.read(job_id, with_log=False).state is JobState.CANCELLED, 60)


def test_one_that_does_not_stream_too(gateway, jobs, fleet):
    body = {**WHOLE, "max_tokens": 4000}
    before = {job.job_id for job in fleet.status().running}
    with httpx.Client(base_url=gateway.url, timeout=0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body)
    assert wait_until(lambda: {job.job_id for job in fleet.status().running} <= before, 60)


def test_unless_it_asked_for_the_background(http, jobs):
    with http.stream("POST", "/v1/chat/completions", json=chat(max_tokens=400, background=True)) as reply:
        job_id = take(events_of(reply.iter_lines()), 5)[0].data["id"]
    assert is_gone(jobs, job_id, (JobState.DONE,))
    shown = http.get(f"/v1/jobs/{job_id}").json()
    assert (shown["status"], shown["result"]["usage"]["completion_tokens"]) == ("completed", 400)


def test_who_does_not_wait_at_all(http, jobs):
    reply = http.post("/v1/chat/completions", json={**WHOLE, "max_tokens": 40, "background": True})
    assert reply.status_code == 202
    assert is_gone(jobs, reply.json()["id"], (JobState.DONE,))
    assert http.get(reply.headers["location"]).json()["result"]["choices"][0]["finish_reason"] == "length"


def test_comments_keep_a_silent_stream_alive(http, ghost, jobs):
    body = chat(model=ghost, max_tokens=4)
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        events = events_of(reply.iter_lines())
        opening = next(events).data
        assert opening["choices"][0]["delta"]["role"] == "assistant"
        assert [next(events).data for _ in range(2)] == [": keep-alive"] * 2
    assert is_gone(jobs, opening["id"])


def test_a_deadline_ends_a_stream_as_clients_know_it(http, ghost):
    """``length`` for who knows OpenAI's reasons only, and beside it what it was."""
    body = chat(model=ghost, max_tokens=4, deadline_s=0.2)
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        *_, last, _done = events_of(reply.iter_lines())
    (choice,) = last.data["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")


def test_jobs_of_others_on_the_same_fleet(http, fleet):
    """Of a client's own job too, as long as it is nobody's in particular."""
    mine = fleet.generate("Hello", max_tokens=5, seed=7)
    mine.result()
    shown = http.get(f"/v1/jobs/{mine.job_id}").json()
    assert (shown["status"], shown["result"]["choices"][0]["text"]) == ("completed", expected(7, 5))
    tenants = fleet.generate("Hello", max_tokens=5, tenant="acme")
    tenants.result()
    for method in ("GET", "DELETE"):
        assert http.request(method, f"/v1/jobs/{tenants.job_id}").status_code == 404
    assert http.get(f"/v1/jobs/{tenants.job_id}/stream").status_code == 404
    assert http.get("/v1/jobs/nothing").json()["error"]["code"] == "job_not_found"
