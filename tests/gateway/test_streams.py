"""What a stream says in bytes: to readers that know `data:` lines only, and to those that can return."""

from __future__ import annotations

import json

import pytest
from events import events_of, text_of

from pagefleet.engine.execution.null_executor import null_token

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPTS = {CHAT: {"messages": [{"role": "user", "content": "Hi"}]}, TEXT: {"prompt": "Hi"}}
IDS = {"stream_options": {"include_ids": True}}


def body_of(path, **options):
    return {"model": "null", "max_tokens": 12, "seed": 7, "stream": True, **PROMPTS[path], **options}


def expected(count, choice=0):
    return "".join(chr(null_token(7, choice, position)) for position in range(count))


def naive_blocks(reply):
    """As benchmarks and small clients read: blocks between blank lines, each of them one ``data:``."""
    *blocks, rest = reply.text.split("\n\n")
    assert rest == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), blocks[:3]
    *events, done = [block.removeprefix("data: ") for block in blocks]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("options", [{}, {"n": 2}, {"stream_options": {"include_usage": True}}])
def test_a_plain_stream_has_nothing_but_data(http, path, options):
    events = naive_blocks(http.post(path, json=body_of(path, **options)))
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == 0]
    said = [choice["text"] if path == TEXT else choice["delta"].get("content", "") for choice in choices]
    assert "".join(said) == expected(12)
    assert not any("position" in event for event in events)


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_who_asks_for_ids_has_them_in_the_data_too(http, path):
    with http.stream("POST", path, json=body_of(path, n=2, **IDS)) as reply:
        *events, done = list(events_of(reply.iter_lines()))
    assert done.data == "[DONE]"
    assert events[-1].id == "12.12"
    assert [event.data["position"] for event in events] == [event.id for event in events]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_without_ids_it_goes_on_after_the_tokens_that_it_counted(http, path):
    with http.stream("POST", path, json=body_of(path, return_token_ids=True, background=True)) as reply:
        job_id = reply.headers["x-pagefleet-job"]
        seen, num_tokens = [], 0
        for event in events_of(reply.iter_lines()):
            seen.append(event)
            num_tokens += sum(len(choice.get("token_ids", ())) for choice in event.data["choices"])
            if num_tokens > 3:
                break
    with http.stream("GET", f"/v1/jobs/{job_id}/stream", params={"after": num_tokens}) as reply:
        rest = list(events_of(reply.iter_lines()))
    assert text_of([*seen, *rest]) == expected(12)
    # A job's stream has ids for everybody: its reader has come back before.
    assert all(event.id == event.data["position"] for event in rest[:-1])
