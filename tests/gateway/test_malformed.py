"""What no client would send on purpose, drawn by hypothesis: a refusal in OpenAI's shape, never a 500, never
a hang, and the fleet answers as before. Always the same draws: a failure comes again."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import error_of

from pagefleet.api.gateway.openai.chat_completions import ChatBody
from pagefleet.api.gateway.openai.completions import CompletionBody

HI = [{"role": "user", "content": "Hi"}]
# Where one of the two is torn, the other one still says that the answer is short.
CHAT = {"max_completion_tokens": 2, "model": "null", "messages": HI, "max_tokens": 2, "seed": 7}
TEXT = {"model": "null", "prompt": "Hi", "max_tokens": 2, "seed": 7}
PLACES = [("/v1/chat/completions", CHAT, ChatBody), ("/v1/completions", TEXT, CompletionBody)]
JSON_TYPE = {"content-type": "application/json"}
drawn = settings(
    max_examples=120, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

# Nothing that is a fair and long answer: a number of tokens is one that is too large.
numbers = st.sampled_from([-1, 0, 2, 2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 10**400, 0.1, -0.0, 1e308])
odd_numbers = st.sampled_from([float("nan"), float("inf"), float("-inf")])
texts = st.text(max_size=8) | st.sampled_from(["\ud800", "\udfff", "\x00", "\u2028", "null", "x" * 5000])
leaves = st.none() | st.booleans() | numbers | odd_numbers | texts
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
depths = st.sampled_from([50, 200, 1000, 20_000])


@st.composite
def wrong_bodies(draw, body, model):
    """A body with one or two fields of it, or of nobody's, made into anything."""
    names = st.sampled_from([*model.model_fields]) | texts
    return body | {draw(names): draw(values) for _ in range(draw(st.integers(1, 2)))}


@st.composite
def torn(draw, body):
    """A body with a piece cut out, or bytes put in that are no UTF-8 and no JSON."""
    content = json.dumps(body).encode()
    at = draw(st.integers(0, len(content)))
    put_in = draw(
        st.sampled_from([b"", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"{", b"]", b'"', b","])
    )
    return content[:at] + put_in + content[at + draw(st.integers(0, 5)) :]


@pytest.fixture(scope="module")
def client(gateway):
    """Its timeout is what a hang runs into."""
    with httpx.Client(base_url=gateway.url, timeout=20) as client:
        yield client
        # Whatever was sent: it answers as before, and nothing was a mistake of ours.
        for path, body, _ in PLACES:
            answer = client.post(path, json=body).json()
            assert answer["usage"]["completion_tokens"] == 2
        assert 'status="500"' not in client.get("/metrics").text


def check(reply):
    """An answer, or a refusal of OpenAI's kind."""
    if reply.status_code in (200, 202):
        return
    assert reply.status_code in (400, 404, 413), reply.text
    error_of(reply)


@pytest.mark.parametrize(("path", "body", "model"), PLACES, ids=["chat", "text"])
class TestBodies:
    def test_fields_that_are_anything(self, client, path, body, model):
        @drawn
        @given(wrong_bodies(body, model))
        def send(wrong):
            check(client.post(path, content=json.dumps(wrong).encode(), headers=JSON_TYPE))

        send()

    def test_torn_ones(self, client, path, body, model):
        @drawn
        @given(torn(body))
        def send(content):
            check(client.post(path, content=content, headers=JSON_TYPE))

        send()

    def test_no_object_at_all(self, client, path, body, model):
        @drawn
        @given(values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=50))
        def send(content):
            reply = client.post(path, content=content, headers=JSON_TYPE)
            assert reply.status_code == 400
            error_of(reply)

        send()

    @pytest.mark.parametrize("name", ["messages", "response_format", "logit_bias", "guided_json", "nobody's"])
    @pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
    @pytest.mark.parametrize("depth", [50, 1000, 20_000])
    def test_nested_ones(self, client, path, body, model, name, brackets, depth):
        opening, closing = brackets[:-1], brackets[-1]
        nested = opening * depth + "1" * (len(opening) > 1) + closing * depth
        whole = json.dumps(body)[:-1] + f", {json.dumps(name)}: {nested}}}"
        check(client.post(path, content=whole.encode(), headers=JSON_TYPE))


def test_requests_that_end_anywhere(gateway):
    """The writing half is closed after so many bytes: an answer, a refusal or nothing, but soon."""
    content = json.dumps(CHAT | {"stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    whole = head + b"content-length: %d\r\n\r\n" % len(content) + content

    @settings(drawn, max_examples=40)
    @given(st.integers(0, len(whole)))
    def send(length):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
            connection.sendall(whole[:length])
            connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        reply = b"".join(parts)
        assert not reply or reply.split()[1] in (b"200", b"400"), reply

    send()
    assert httpx.post(f"{gateway.url}/v1/completions", json=TEXT).status_code == 200
