"""Every refusal has OpenAI's shape, and tells nothing that is not the caller's."""

from __future__ import annotations

import gzip
import json

import httpx
import openai
import pytest
from events import events_of
from refusals import error_of

from pagefleet.api.contract import keys
from pagefleet.api.contract.messages import ErrorInfo, JobState, WorkerStatus
from pagefleet.api.gateway.answers.job_ids import jobs_of
from pagefleet.workers.threads.polling import wait_until

HI = [{"role": "user", "content": "Hi"}]
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
OLD_CALL = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
NO_SCHEMA = ("response_format.json_schema.schema", "missing_required_parameter")
BAD_SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "nope"}}}
LONG = {"role": "user", "content": "x" * 5000}
PLAIN = {"type": "json_object"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, {"messages": []}, "messages", "invalid_value"),
        (CHAT, {"messages": "Hi"}, "messages", "invalid_type"),
        (CHAT, {"messages": [{"content": "Hi"}]}, "messages[0].role", "missing_required_parameter"),
        (CHAT, {"messages": [IMAGE]}, "messages[0].content", "invalid_type"),
        (CHAT, {"model": None}, "model", "invalid_type"),
        (CHAT, {"temperature": "hot"}, "temperature", "invalid_type"),
        (CHAT, {"temperature": -1}, "temperature", "invalid_value"),
        (CHAT, {"n": 0}, "n", "invalid_value"),
        (CHAT, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (CHAT, {"max_tokens": 10**6}, "max_tokens", "invalid_value"),
        (CHAT, {"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        (CHAT, {"stop": [1]}, "stop[0]", "invalid_type"),
        (CHAT, {"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        (CHAT, {"messages": [OLD_CALL]}, "messages[0].function_call", "unsupported_parameter"),
        (CHAT, {"priority": 9}, "priority", "invalid_value"),
        (CHAT, {"seed": 2**63}, "seed", "invalid_value"),
        (CHAT, {"seed": -(2**63) - 1}, "seed", "invalid_value"),
        (CHAT, {"messages": [{"role": "pirate", "content": "Hi"}]}, "messages[0].role", "invalid_value"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        (CHAT, {"max_completion_tokens": 10**6}, "max_completion_tokens", "invalid_value"),
        (CHAT, {"messages": [LONG]}, "messages", "context_length_exceeded"),
        (CHAT, {"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        (CHAT, {"tools": [], "tool_choice": "auto"}, "tool_choice", "invalid_value"),
        (CHAT, {"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (CHAT, {"response_format": {"type": "json_schema"}}, *NO_SCHEMA),
        (CHAT, {"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format", None),
        (CHAT, {"response_format": BAD_SCHEMA}, "response_format", "invalid_value"),
        (CHAT, {"response_format": {**PLAIN, "schema": 123}}, "response_format.schema", "invalid_value"),
        (CHAT, {"response_format": {**PLAIN, "schema": {"type": "x"}}}, "response_format", "invalid_value"),
        (CHAT, {"guided_json": "{"}, "guided_json", "invalid_value"),
        (CHAT, {"guided_json": []}, "guided_json", "invalid_value"),
        (CHAT, {"guided_json": {"type": "nope"}}, "guided_json", "invalid_value"),
        (CHAT, {"guided_regex": "("}, "guided_regex", "invalid_value"),
        (CHAT, {"structured_outputs": {"json": []}}, "structured_outputs.json", "invalid_value"),
        (CHAT, {"structured_outputs": {"regex": "("}}, "structured_outputs", "invalid_value"),
        (CHAT, {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value"),
        (TEXT, {}, "prompt", "missing_required_parameter"),
        (TEXT, {"prompt": []}, "prompt", "invalid_type"),
        (TEXT, {"prompt": ["a", [1]], "suffix": "b"}, "suffix", "unsupported_parameter"),
        (TEXT, {"prompt": ["a", 1]}, "prompt", "invalid_type"),
        (TEXT, {"prompt": ["a"] * 600}, "prompt", "invalid_type"),
        (TEXT, {"prompt": ["a"] * 500, "n": 100}, "n", "invalid_value"),
        (TEXT, {"prompt": ""}, "prompt", "invalid_value"),
        (TEXT, {"prompt": [9999]}, "prompt", "invalid_value"),
        (TEXT, {"prompt": [-1]}, "prompt[0]", "invalid_value"),
        (TEXT, {"prompt": [72, -1]}, "prompt[1]", "invalid_value"),
        (TEXT, {"prompt": "a", "echo": True, "logprobs": 21}, "logprobs", "invalid_value"),
        (TEXT, {"prompt": "a", "best_of": 2}, "best_of", "unsupported_parameter"),
        (TEXT, {"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
        (TEXT, {"prompt": [1] * 4096}, "prompt", "context_length_exceeded"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http, path, body, param, code):
    whole = {"model": "null", "max_tokens": 4, **({"messages": HI} if path == CHAT else {}), **body}
    reply = http.post(path, json=whole)
    error = error_of(reply)
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code), error["message"]
    for internal in ("prompt_token_ids", "json_schema.dict", "[key]", "json-or-python", "after validation"):
        assert internal not in error["message"]
    # The same before the first byte of a stream, also where only a worker can know it.
    streamed = http.post(path, json={**whole, "stream": True})
    assert (streamed.status_code, streamed.json()) == (400, reply.json())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 5000, b'{"model": "\\ud800"}'])
def test_a_body_that_is_none(http, content):
    reply = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, error_of(reply)["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("content", [b"[]", b"null", b'"x"'])
def test_a_body_that_is_no_object_is_named(http, content):
    reply = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error_of(reply)["message"] == "The body must be a JSON object."


def test_what_is_not_sent_as_json(http):
    """A page of somebody else's could send a form, or plain text, from a visitor's browser."""
    reply = http.post(CHAT, content=json.dumps({"model": "null", "messages": HI}))
    assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_content_type")


def test_a_compressed_body_is_refused_by_name(http):
    content = gzip.compress(json.dumps({"model": "null", "messages": HI}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    reply = http.post(CHAT, content=content, headers=headers)
    assert (reply.status_code, error_of(reply)["code"]) == (415, "unsupported_content_encoding")
    assert "'gzip'" in error_of(reply)["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/nothing", 404, "unknown_url"),
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_supported"),
        ("GET", "/v1/models/nobody/else", 404, "model_not_found"),
        ("DELETE", "/v1/jobs/none", 404, "job_not_found"),
    ],
)
def test_what_is_not_there(http, method, path, status, code):
    reply = http.request(method, path)
    assert (reply.status_code, error_of(reply)["code"]) == (status, code)


def test_no_address_is_sent_elsewhere(http):
    """A redirect would name whatever host the request named."""
    reply = http.post(CHAT + "/", json={}, follow_redirects=False)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "model")


def test_options_of_a_stream_are_a_streams(http):
    for path, asked in ((CHAT, {"messages": HI}), (TEXT, {"prompt": "Hi"})):
        body = {"model": "null", "max_tokens": 1, "stream_options": {"include_usage": True}, **asked}
        reply = http.post(path, json=body)
        assert (reply.status_code, error_of(reply)["param"]) == (400, "stream_options")


def test_a_model_that_nobody_serves(ai):
    with pytest.raises(openai.NotFoundError) as caught:
        ai.chat.completions.create(model="nobody", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_unknown_fields_are_named_or_refused(http, narrow):
    body = {"model": "null", "messages": HI, "max_tokens": 1, "colour": "red", "user": "me", "a b\r\n": 1}
    reply = http.post(CHAT, json=body)
    assert (reply.status_code, reply.headers["x-pagefleet-ignored"]) == (200, "colour, a?b??")
    reply = httpx.post(narrow.url + CHAT, json=body)
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (400, "colour", "unknown_parameter")


def test_unknown_fields_inside_others_too(http, narrow):
    body = {
        "model": "null",
        "messages": [
            {"role": "user", "content": "Hi", "colour": "red", "function_call": None},
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {}}]},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "x": 1}, "index": 0}]},
        ],
        "max_tokens": 1,
        "stream": True,
        "stream_options": {"bar": 1},
        "tools": [{"type": "function", "function": {"name": "f", "return": {}}, "defer": True}],
        "tool_choice": {"type": "auto", "hard": True},
    }
    reply = http.post(CHAT, json=body)
    ignored = set(reply.headers["x-pagefleet-ignored"].split(", "))
    assert ignored == {
        "messages[0].colour", "messages[0].function_call", "messages[1].content[0].cache_control",
        "messages[2].tool_calls[0].index", "messages[2].tool_calls[0].function.x", "stream_options.bar",
        "tools[0].defer", "tools[0].function.return", "tool_choice.hard",
    }  # fmt: skip
    error = error_of(httpx.post(narrow.url + CHAT, json=body))
    assert (error["param"], error["code"]) == ("stream_options.bar", "unknown_parameter")
    body = {"model": "null", "messages": HI, "response_format": {"type": "json_schema"}}
    body["response_format"]["json_schema"] = {"name": "x", "schema": {"enum": [1]}, "colour": 1}
    reply = http.post(CHAT, json=body)
    assert reply.headers["x-pagefleet-ignored"] == "response_format.json_schema.colour"


def test_a_body_that_is_too_large(narrow):
    json_type = {"content-type": "application/json"}
    for content in (b"x" * 1001, iter([b"x" * 600] * 2)):
        reply = httpx.post(narrow.url + CHAT, content=content, headers=json_type)
        assert (reply.status_code, error_of(reply)["code"]) == (413, "request_too_large")


def test_a_full_queue(http, ghost):
    """429 at once, with the time to come back after, and nothing is enqueued."""
    body = {"model": ghost, "messages": HI, "background": True}
    for _ in range(3):
        assert http.post(CHAT, json=body).status_code == 202
    reply = http.post(CHAT, json=body)
    assert (reply.status_code, error_of(reply)["code"], reply.headers["retry-after"]) == (
        429,
        "queue_full",
        "1",
    )
    assert reply.elapsed.total_seconds() < 0.9, "it does not wait for a worker's word"
    # Of several prompts none is enqueued where not all are.
    reply = http.post(TEXT, json={"model": ghost, "prompt": ["a", "b"]})
    assert reply.status_code == 429


def test_an_answer_that_takes_too_long(narrow, ghost, jobs):
    reply = httpx.post(narrow.url + CHAT, json={"model": ghost, "messages": HI})
    assert (reply.status_code, error_of(reply)["code"]) == (408, "request_timeout")
    ledger = keys.open_jobs(keys.queue(ghost, "interactive"))
    assert wait_until(lambda: not jobs.redis.zcard(ledger), 60), "its job is cancelled"


def test_no_redis(start_gateway):
    gateway = start_gateway("redis://127.0.0.1:1/0")
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/jobs/x"), ("POST", CHAT)):
            body = {"json": {"model": "null", "messages": HI}} if method == "POST" else {}
            reply = client.request(method, path, **body)
            assert (reply.status_code, error_of(reply)["code"]) == (503, "service_unavailable")
            assert reply.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        assert client.get("/ready").json() == {"status": "not ready", "reason": "no Redis"}


def test_ready_is_a_worker_for_each_model(http, ghost):
    reply = http.get("/ready")
    assert (reply.status_code, reply.json()["reason"]) == (503, "1 of 2 models have no worker")


def test_ready(http):
    assert wait_until(lambda: http.get("/ready").status_code == 200, 60)


def test_a_rejection_that_comes_late_is_an_event(http, ghost, jobs):
    """After a second the head goes out; what a worker says then stands in the stream."""
    body = {"model": ghost, "messages": HI, "max_tokens": 4, "stream": True}
    with http.stream("POST", CHAT, json=body) as reply:
        assert reply.status_code == 200
        events = events_of(reply.iter_lines())
        job_id = next(events).data["id"]
        worker = WorkerStatus(worker_id="late", model=ghost, host="h", pid=1, started_at=0.0)
        jobs.beat(worker, 5.0)
        (claim,) = jobs.claim([job_id], "late", "{}")
        refusal = ErrorInfo(code="context_too_long", message="It is too long.", param="messages")
        jobs.end(job_id, "late", claim.epoch, JobState.FAILED, reason="error", error=refusal)
        error, done = [event.data for event in events if not str(event.data).startswith(":")]
    assert error["error"] == {
        "message": "It is too long.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    assert done == "[DONE]"
    jobs.delete_lease("late")
    jobs.forget_worker("late")


def test_one_of_several_prompts_that_fails_late_ends_the_others(http, ghost, jobs):
    """Nobody reads them any more: the answer is an error."""
    body = {"model": ghost, "prompt": ["a", "b"], "max_tokens": 4, "stream": True}
    with http.stream("POST", TEXT, json=body) as reply:
        events = events_of(reply.iter_lines())
        next(events)
        first, second = jobs_of(reply.headers["x-pagefleet-job"])
        jobs.beat(WorkerStatus(worker_id="half", model=ghost, host="h", pid=1, started_at=0.0), 5.0)
        (claim,) = jobs.claim([first], "half", "{}")
        refusal = ErrorInfo(code="job_failed", message="No.")
        jobs.end(first, "half", claim.epoch, JobState.FAILED, reason="error", error=refusal)
        error, done = [event.data for event in events if not str(event.data).startswith(":")]
    assert (error["error"]["code"], done) == ("job_failed", "[DONE]")
    assert jobs.read(second, with_log=False).state is JobState.CANCELLED
    jobs.delete_lease("half")
    jobs.forget_worker("half")


def test_a_reader_of_several_jobs_cancels_none_if_one_fails(http, ghost, jobs):
    """The reader did not submit them, and the other job may have further readers."""
    body = {"model": ghost, "prompt": ["a", "b"], "max_tokens": 4, "background": True}
    answer_id = http.post(TEXT, json=body).json()["id"]
    first, second = jobs_of(answer_id)
    with http.stream("GET", f"/v1/jobs/{answer_id}/stream") as reply:
        events = events_of(reply.iter_lines())
        jobs.beat(WorkerStatus(worker_id="half", model=ghost, host="h", pid=1, started_at=0.0), 5.0)
        (claim,) = jobs.claim([first], "half", "{}")
        refusal = ErrorInfo(code="job_failed", message="No.")
        jobs.end(first, "half", claim.epoch, JobState.FAILED, reason="error", error=refusal)
        error, done = [event.data for event in events if not str(event.data).startswith(":")]
    assert (error["error"]["code"], done) == ("job_failed", "[DONE]")
    assert jobs.read(second, with_log=False).state is JobState.QUEUED
    jobs.delete_lease("half")
    jobs.forget_worker("half")
    jobs.cancel(second)


def test_what_failed_inside_is_not_told(http, ghost, jobs):
    reply = http.post(CHAT, json={"model": ghost, "messages": HI, "background": True})
    job_id = reply.json()["id"]
    jobs.beat(WorkerStatus(worker_id="inside", model=ghost, host="h", pid=1, started_at=0.0), 5.0)
    (claim,) = jobs.claim([job_id], "inside", "{}")
    secret = ErrorInfo(code="job_failed", message="File /usr/lib/x.py: boom")
    jobs.end(job_id, "inside", claim.epoch, JobState.FAILED, reason="error", error=secret)
    shown = http.get(f"/v1/jobs/{job_id}").json()
    assert (shown["status"], shown["error"]["message"]) == ("failed", "The job failed.")
    assert "boom" not in http.get(f"/v1/jobs/{job_id}/stream").text
    jobs.delete_lease("inside")
    jobs.forget_worker("inside")
