"""What connections can do wrong: heads without an end, halves of requests, readers that don't read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import JobState
from pagefleet.api.gateway.answers.job_ids import jobs_of
from pagefleet.api.protocol.operation_types import CLIENT_LEASE_S
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]


def connect(gateway):
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=60)


def request(**options):
    body = json.dumps({"model": "null", "messages": HI, **options}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def read_all(connection):
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status_and_code(reply):
    head, _, body = reply.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def job_of(connection):
    """The job of a stream, from the head of its answer."""
    seen = b""
    while b"data: " not in seen:
        seen += connection.recv(4096)
    return seen.split(b"x-pagefleet-job: ")[1].split(b"\r\n")[0].decode()


def test_ten_thousand_bytes_of_header_are_fine(http):
    assert http.get("/v1/models", headers={"x-long": "x" * 10_000}).status_code == 200


HEADS = {
    "a header without an end": b"GET / HTTP/1.1\r\nx: " + b"x" * 20_000,
    "a path without an end": b"GET /" + b"x" * 20_000,
    "headers without an end": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 3000,
    "too long, and whole": b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 9_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_that_is_too_large(narrow, head):
    with connect(narrow) as connection:
        connection.sendall(head)
        assert status_and_code(read_all(connection)) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "trailer", [b"a: b\r\n" * 99_999, b"a: " + b"b" * 1_000_000], ids=["many", "endless"]
)
def test_trailers_that_are_too_large(gateway, trailer):
    """They may follow a body in chunks, and nobody reads them."""
    head = request().split(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
    with connect(gateway) as connection:
        connection.sendall(head + b"1\r\n{\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            connection.sendall(trailer)
        # The end; a refusal before it may get lost behind what was sent after it.
        reply = read_all(connection)
        assert not reply or status_and_code(reply) == (431, "headers_too_large")


@pytest.mark.parametrize("part", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_never_ends(narrow, part):
    with connect(narrow) as connection:
        connection.sendall(part)
        assert status_and_code(read_all(connection)) == (408, "request_timeout")


def test_a_body_that_never_ends(narrow):
    with connect(narrow) as connection:
        connection.sendall(request(max_tokens=4)[:-10])
        assert status_and_code(read_all(connection)) == (408, "request_timeout")


@pytest.mark.parametrize("part", [b"G", b"\r\n"])
def test_a_second_head_that_never_ends(narrow, part):
    with connect(narrow) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        time.sleep(0.1)
        connection.sendall(part)
        assert b"request_timeout" in read_all(connection)


@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http(gateway, nonsense):
    with connect(gateway) as connection:
        connection.sendall(nonsense)
        assert status_and_code(read_all(connection)) == (400, "invalid_http")


def test_too_many_connections(narrow):
    with contextlib.ExitStack() as open_ones:
        for _ in range(20):
            open_ones.enter_context(connect(narrow))
        with connect(narrow) as connection:
            assert status_and_code(read_all(connection)) == (503, "overloaded")
    assert wait_until(lambda: httpx.get(f"{narrow.url}/health").status_code == 200, 60)


def test_one_request_after_the_other_on_one_connection(gateway):
    with connect(gateway) as connection:
        connection.sendall(request(max_tokens=1) * 3)
        seen = b""
        while seen.count(b"HTTP/1.1 200 OK") < 3 or not seen.endswith(b"}"):
            seen += connection.recv(65536)
    assert seen.count(b'"chat.completion"') == 3


OFFERS = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\n",
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("at_once", [True, False])
def test_who_offers_another_protocol_is_answered_in_this_one(gateway, offer, at_once):
    """Java's client does so by default, and curl with --http2: the body is behind the offer."""
    line, _, rest = request(max_tokens=1).partition(b"\r\n")
    asked = line + b"\r\n" + offer + rest
    with connect(gateway) as connection:
        if at_once:
            connection.sendall(asked + request(max_tokens=1))
        else:
            connection.sendall(asked[:-30])
            time.sleep(0.05)
            connection.sendall(asked[-30:] + request(max_tokens=1))
        seen = b""
        while seen.count(b'"chat.completion"') < 2 or not seen.endswith(b"}"):
            part = connection.recv(65536)
            assert part, seen
            seen += part
    assert seen.count(b"HTTP/1.1 200 OK") == 2


def test_a_tunnel_is_refused(gateway):
    with connect(gateway) as connection:
        connection.sendall(b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert status_and_code(read_all(connection))[0] in (400, 404, 405)


def test_a_whole_answer_that_nobody_takes_is_not_kept(start_gateway):
    """Three of them, some 700 kB each: more than the sockets' buffers hold."""
    impatient = start_gateway(send_timeout_s=0.5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", impatient.port))
        mine = connection.getsockname()
        big = {
            "model": "null",
            "messages": HI,
            "max_tokens": 50,
            "n": 60,
            "logprobs": True,
            "top_logprobs": 5,
        }
        connection.sendall(request(**big) * 3)
        process = psutil.Process(impatient.pid)

        def is_held():
            return any(tuple(each.raddr) == mine for each in process.net_connections("tcp"))

        assert wait_until(is_held, 60)
        assert wait_until(lambda: not is_held(), 60)


def test_a_connection_that_is_half_closed_is_a_client_that_has_left(gateway, jobs):
    with connect(gateway) as connection:
        connection.sendall(request(max_tokens=4000, stream=True))
        job_id = job_of(connection)
        connection.shutdown(socket.SHUT_WR)
        assert wait_until(lambda: jobs.read(job_id, with_log=False).state is JobState.CANCELLED, 60)


def test_one_that_is_closed_in_the_middle_of_its_body(gateway, http):
    whole = request(max_tokens=4)
    with connect(gateway) as connection:
        connection.sendall(whole[:-10])
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    assert http.get("/health").status_code == 200
    assert 'status="500"' not in http.get("/metrics").text


def test_a_reader_that_does_not_read_is_cut_off_and_grows_nothing(narrow, jobs):
    """Events of 40 choices are long: the sockets' buffers fill, and then nothing more is kept."""
    process = psutil.Process(narrow.pid)
    with contextlib.ExitStack() as slow_ones:
        job_ids = []
        for _ in range(4):
            connection = slow_ones.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", narrow.port))
            connection.sendall(request(max_tokens=2000, n=40, stream=True, logprobs=True))
            job_ids.append(job_of(connection))
        before = process.memory_info().rss
        # When nobody reads any more, all of them are given up, and with them their jobs.
        for job_id in job_ids:
            assert wait_until(
                lambda job_id=job_id: jobs.read(job_id, with_log=False).state is JobState.CANCELLED, 60
            )
    assert process.memory_info().rss - before < 60 * 2**20


def test_one_of_several_prompts_too(narrow, jobs):
    body = {"model": "null", "prompt": ["a"] * 8, "max_tokens": 4000, "n": 4, "stream": True, "logprobs": 2}
    content = json.dumps(body).encode()
    head = request().partition(b"\r\n")[2].partition(b"content-length")[0]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", narrow.port))
        line = b"POST /v1/completions HTTP/1.1\r\n"
        connection.sendall(line + head + f"content-length: {len(content)}\r\n\r\n".encode() + content)
        for job_id in jobs_of(job_of(connection)):
            assert wait_until(
                lambda job_id=job_id: jobs.read(job_id, with_log=False).state is JobState.CANCELLED, 60
            )


IDS = {"stream": True, "max_tokens": 4000, "stream_options": {"include_ids": True}}
PLAIN = {"stream": True, "max_tokens": 4000}


def resume(gateway, job_id):
    connection = connect(gateway)
    connection.sendall(f"GET /v1/jobs/{job_id}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert b"data: " in read_until(connection, b"data: ")
    return connection


def read_until(connection, part):
    seen = b""
    while part not in seen:
        more = connection.recv(4096)
        assert more, seen
        seen += more
    return seen


def is_in_state(jobs, job_id, state, within_s):
    return wait_until(lambda: jobs.read(job_id, with_log=False).state is state, within_s)


def begin_and_break_off(gateway, **options):
    with connect(gateway) as connection:
        connection.sendall(request(**options))
        return job_of(connection)


def test_a_plain_stream_that_breaks_off_cancels_its_job_within_a_step(narrow, jobs):
    """Its client has no position to return to: nothing is computed for nobody."""
    job_id = begin_and_break_off(narrow, **PLAIN)
    assert is_in_state(jobs, job_id, JobState.CANCELLED, CLIENT_LEASE_S * 2 / 3)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_who_can_return_keeps_the_job_and_who_does_not_loses_it(
    gateway, narrow, jobs, return_within_s, where
):
    lost, kept = (begin_and_break_off(gateway, **IDS) for _ in range(2))
    begun_at = time.monotonic()
    with resume(gateway if where == "here" else narrow, kept):
        assert is_in_state(jobs, lost, JobState.CANCELLED, 15)
        assert time.monotonic() - begun_at > return_within_s / 2
        time.sleep(return_within_s)
        assert is_in_state(jobs, kept, JobState.RUNNING, 0.1)
    httpx.delete(f"{gateway.url}/v1/jobs/{kept}")


def test_on_sigterm_what_runs_may_end_and_what_streams_on_is_cut_off(start_gateway, gateway, jobs):
    leaving = start_gateway(drain_s=3)
    ledger = keys.open_jobs(keys.queue("null", "interactive"))
    with connect(leaving) as brief, connect(leaving) as endless, connect(leaving) as plain:
        endless.sendall(request(**IDS))
        plain.sendall(request(**PLAIN))
        job_id, plain_id = job_of(endless), job_of(plain)
        before = set(jobs.redis.zrange(ledger, 0, -1))
        brief.sendall(request(max_tokens=100, seed=7))
        assert wait_until(lambda: set(jobs.redis.zrange(ledger, 0, -1)) - before, 60)
        leaving.terminate()
        assert b"200 OK" in read_all(brief)
        rest = read_all(endless)
    assert b"data: " in rest
    assert b"[DONE]" not in rest, "it is no end: the client goes on elsewhere"
    assert leaving.wait(60) == 0
    assert jobs.read(job_id, with_log=False).state is JobState.RUNNING
    assert is_in_state(jobs, plain_id, JobState.CANCELLED, CLIENT_LEASE_S * 2 / 3), "its client cannot"
    httpx.delete(f"{gateway.url}/v1/jobs/{job_id}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:80", "LOCALHOST"])
def test_it_knows_its_own_names(http, host):
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.1"]
)
def test_a_page_whose_name_was_made_to_point_here_is_not_answered(http, host):
    reply = http.get("/v1/models", headers={"host": host})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 404), ("http://127.0.0.1", 404), ("https://evil.example", 403),
        ("null", 403), ("http://[", 403),
    ],
)  # fmt: skip
def test_a_page_of_somebody_elses_gives_no_orders(http, origin, status):
    """A browser sends what asks for nothing special wherever a page wants, and says whose page it is."""
    reply = http.post("/v1/jobs/no-such-job/cancel", headers={"origin": origin})
    assert reply.status_code == status


def test_without_keys_it_is_this_hosts_alone(null_stack):
    command = [sys.executable, "-m", "pagefleet.api.cli.main", "serve", "--host", "0.0.0.0", "--port", "0"]
    environment = {**os.environ, "REDIS_URL": null_stack.redis_url}
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "no API keys are configured" in refused.stderr
    open_one = subprocess.Popen(
        command, env={**environment, "PAGEFLEET_GATEWAY_OPEN": "1"}, stderr=subprocess.PIPE, text=True
    )
    assert "http://0.0.0.0:" in open_one.stderr.readline()
    open_one.send_signal(signal.SIGINT)
    assert open_one.wait(60) == 0
    open_one.stderr.close()
