"""What vLLM's, llama.cpp's and SGLang's own tests expect of a server, and OpenAI's clients with them."""

from __future__ import annotations

import json

import httpx
import pytest
from events import events_of

HI = [{"role": "user", "content": "Hi"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SEED_7 = 'zF E;@l9!Uhk= 4"'
ORIGIN = "https://app.example"
BOS = 256


def body_of(path, **options):
    asked = {"messages": HI} if path == CHAT else {"prompt": "Hi"}
    return {"model": "null", "max_tokens": 8, "seed": 7, **asked, **options}


def events(http, path, **options):
    with http.stream("POST", path, json=body_of(path, stream=True, **options)) as reply:
        found = [event.data for event in events_of(reply.iter_lines())]
    assert found[-1] == "[DONE]"
    return [each for each in found[:-1] if isinstance(each, dict)]


def test_cached_tokens(http):
    """Of the prompt: those that an earlier request has left, wherever usage is told."""
    asked = {"prompt": "x" * 100, "cache_salt": "cached tokens"}
    usages = [http.post(TEXT, json=body_of(TEXT, **asked)).json()["usage"]]
    answer = http.post(TEXT, json=body_of(TEXT, **asked)).json()
    usages.append(answer["usage"])
    usages.append(events(http, TEXT, **asked, stream_options={"include_usage": True})[-1]["usage"])
    cached = [each["prompt_tokens_details"]["cached_tokens"] for each in usages]
    assert cached[0] == 0
    assert 60 < cached[1] == cached[2] < 101
    shown = http.get(f"/v1/jobs/{answer['id']}").json()
    listed = next(each for each in http.get("/v1/jobs").json()["data"] if each["id"] == answer["id"])
    assert shown["usage"] == shown["result"]["usage"] == listed["usage"] == answer["usage"]


def test_the_prompts_tokens_beside_the_answers(http):
    asked = {"return_token_ids": True}
    (choice,) = http.post(TEXT, json=body_of(TEXT, **asked)).json()["choices"]
    assert choice["prompt_token_ids"] == [BOS, *b"Hi"]
    assert choice["token_ids"] == list(map(ord, SEED_7[:8]))
    chat = http.post(CHAT, json=body_of(CHAT, **asked)).json()
    assert len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]
    assert "prompt_token_ids" not in chat["choices"][0]
    # It is in the job too, and once in a stream.
    assert http.get(f"/v1/jobs/{chat['id']}").json()["result"]["prompt_token_ids"] == chat["prompt_token_ids"]
    streamed = [
        each["prompt_token_ids"] for each in events(http, CHAT, **asked) if "prompt_token_ids" in each
    ]
    assert streamed == [chat["prompt_token_ids"]]
    by_choice = [
        (choice["index"], choice["prompt_token_ids"])
        for event in events(http, TEXT, prompt=["Hi", [72]], n=2, **asked)
        for choice in event["choices"]
        if "prompt_token_ids" in choice
    ]
    assert sorted(by_choice) == [(0, [BOS, *b"Hi"]), (1, [BOS, *b"Hi"]), (2, [72]), (3, [72])]


def test_a_chats_prompt_logprobs_stand_at_the_top(http):
    whole = http.post(CHAT, json=body_of(CHAT, prompt_logprobs=0)).json()
    assert whole["prompt_logprobs"][0] is None
    assert "prompt_logprobs" not in whole["choices"][0]
    streamed = [each["prompt_logprobs"] for each in events(http, CHAT, prompt_logprobs=0, n=2) if
                "prompt_logprobs" in each]  # fmt: skip
    assert streamed == [whole["prompt_logprobs"]]


def test_a_system_fingerprint_is_that_of_the_engine(http):
    answer = http.post(CHAT, json=body_of(CHAT)).json()
    told = {event["system_fingerprint"] for event in events(http, CHAT)}
    told |= {http.get(f"/v1/jobs/{answer['id']}").json()["result"]["system_fingerprint"]}
    assert told == {answer["system_fingerprint"]}
    assert answer["system_fingerprint"].startswith("fp_")


def test_a_models_root(http):
    assert http.get("/v1/models/null").json()["root"] == "null"


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_last_tokens_say_why_they_are_the_last(http, path):
    found = events(http, path, logprobs=True if path == CHAT else 1)
    (last,) = found[-1]["choices"]
    assert last["finish_reason"] == "length"
    assert last["text" if path == TEXT else "delta"]
    assert last["logprobs"] is not None
    assert sum(choice["finish_reason"] is not None for event in found for choice in event["choices"]) == 1
    assert len(found) <= 8 + (path == CHAT), "an opening, and no more events than tokens"


@pytest.mark.parametrize("n", [1, 2])
def test_usage_with_each_event(http, n):
    options = {"include_usage": True, "continuous_usage_stats": True, "include_ids": True}
    found = events(http, TEXT, n=n, stream_options=options)
    for event in found:
        counted = sum(map(int, event["position"].rstrip("utc").split(".")))
        assert event["usage"]["completion_tokens"] == counted
        assert event["usage"]["prompt_tokens"] == 3
    # Who goes on has it on.
    begin = found[0]["position"]
    with http.stream("GET", f"/v1/jobs/{found[0]['id']}/stream", headers={"last-event-id": begin}) as reply:
        rest = [event.data for event in events_of(reply.iter_lines()) if isinstance(event.data, dict)]
    assert [each["usage"]["completion_tokens"] for each in rest][-1] == 8 * n
    assert all(each["usage"] for each in rest)


def test_llama_cpps_place_for_a_schema(http):
    asked = {"response_format": {"type": "json_object", "schema": {"const": 5}}}
    answer = http.post(CHAT, json=body_of(CHAT, **asked)).json()
    assert answer["choices"][0]["message"]["content"] == "5"


def test_a_key_in_the_other_header(guarded_gateway, key_file):
    from pagefleet.workers.threads.polling import wait_until

    token, _ = key_file.add(tenant="acme")
    with httpx.Client(base_url=guarded_gateway.url) as client:

        def status(**headers):
            return client.get("/v1/models", headers=headers).status_code

        assert wait_until(lambda: status(**{"x-api-key": token}) == 200, 60, 0.1)
        assert status(**{"x-api-key": "pf-1"}) == 401
        assert status(**{"x-api-key": token, "authorization": "Bearer pf-1"}) == 401


def test_a_slash_at_the_end_is_none(http):
    assert http.get("/v1/models/").json() == http.get("/v1/models").json()
    assert http.get("/health/").status_code == 200
    answer = http.post(CHAT + "/", json=body_of(CHAT), follow_redirects=False).json()
    assert answer["choices"][0]["message"]["content"] == SEED_7[:8]
    assert http.get(f"/v1/jobs/{answer['id']}/").json()["status"] == "completed"
    assert http.get("//").status_code == 200


def test_a_slash_of_a_jobs_id_is_its_own(http, fleet):
    fleet.generate("Hi", max_tokens=1, job_id="order/17/").result()
    assert http.get("/v1/jobs/order%2F17%2F").json()["id"] == "order/17/"


@pytest.fixture(scope="module")
def open_to_a_page(start_gateway):
    return start_gateway(cors_origins=json.dumps([ORIGIN]))


def test_the_javascript_clients_preflight(open_to_a_page):
    """From an allowed origin it may send whatever headers it has; from another one nothing is allowed."""
    wanted = "authorization, content-type, openai-organization, openai-project, traceparent, x-stainless-lang"
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": wanted,
    }
    with httpx.Client(base_url=open_to_a_page.url) as client:
        reply = client.options(CHAT, headers={"origin": ORIGIN, **asked})
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert set(wanted.split(", ")) <= set(reply.headers["access-control-allow-headers"].split(", "))
        assert "access-control-allow-credentials" not in reply.headers
        answer = client.post(CHAT, json=body_of(CHAT), headers={"origin": ORIGIN, "x-stainless-lang": "js"})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
        for foreign in ("https://evil.example", f"{ORIGIN}.evil.example"):
            refused = client.options(CHAT, headers={"origin": foreign, **asked})
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("headers", "code", "said"),
    [
        ({"host": "evil.example"}, "unknown_host", ("`evil.example`", "gateway_keys_file", "gateway_open")),
        ({"origin": "http://x.example"}, "unknown_origin", ("`http://x.example`", "gateway_cors_origins")),
    ],
)  # fmt: skip
def test_a_403_says_which_setting_allows_it(http, headers, code, said):
    reply = http.get("/v1/models", headers=headers)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (403, code)
    assert all(each in error["message"] for each in said)


def test_a_404_names_the_model(http):
    for reply in (http.post(CHAT, json=body_of(CHAT, model="nobody")), http.get("/v1/models/nobody")):
        assert reply.status_code == 404
        assert "`nobody`" in reply.json()["error"]["message"]
        assert "null" not in reply.text.replace(":null", "")
