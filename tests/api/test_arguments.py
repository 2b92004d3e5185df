"""What monitors are shown of a job's arguments."""

from __future__ import annotations

from ast import literal_eval

import pytest

from pagefleet.api.broker.arguments import request_repr, shorten_repr
from pagefleet.api.contract.messages import ChatMessage, GenerateRequest, SamplingParams

SECRET = "sentinel"


def request(**fields):
    return GenerateRequest(model="m", sampling=SamplingParams(max_tokens=7, stop=[SECRET]), **fields)


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"prompt": f"{SECRET} and more"}, {"prompt": "<17 chars>"}),
        ({"prompt_token_ids": [1, 2, 3]}, {"prompt_token_ids": "<3 tokens>"}),
        (
            {
                "messages": [
                    ChatMessage(role="system", content="be nice"),
                    ChatMessage(role="user", content=SECRET),
                ]
            },
            {"messages": "<15 chars>"},
        ),
        (
            {"prompt": SECRET, "lane": "batch", "priority": 9, "tenant": "acme"},
            {"prompt": "<8 chars>", "lane": "batch", "priority": 9, "tenant": "acme"},
        ),
    ],
)
def test_a_request_is_shown_without_its_text(fields, shown):
    text = request_repr(request(**fields), 0)
    assert literal_eval(text) == {"model": "m", "max_tokens": 7, **shown}
    assert SECRET not in text


def test_as_much_of_the_prompt_as_was_asked_for():
    text = request_repr(request(prompt="Once upon a time"), 9)
    assert literal_eval(text)["prompt"] == "Once upon… <16 chars>"
    # Who is told it may show less of it, and never more.
    assert literal_eval(shorten_repr(text, 4))["prompt"] == "Once… <16 chars>"
    assert literal_eval(shorten_repr(text, 0))["prompt"] == "<16 chars>"
    assert shorten_repr(text, 100) == text
    last = [ChatMessage(role="user", content="one"), ChatMessage(role="user", content="two")]
    assert literal_eval(request_repr(request(messages=last), 2))["messages"] == "tw… <6 chars>"


@pytest.mark.parametrize(
    "text",
    [
        "...",
        "()",
        "{...}",
        "",
        None,
        7,
        "{'prompt': 'cut in the midd...",
        "[" * 5000,
        "{" + "'max_tokens': 1, " * 1000 + "}",
        f"['{SECRET}']",
        f"{{'unknown': '{SECRET}'}}",
    ],
)
def test_what_cannot_be_read_is_hidden(text):
    assert shorten_repr(text, 100) == "..."


def test_arguments_of_a_plain_service_are_shortened_too():
    shown = literal_eval(
        shorten_repr(repr({"model": "m", "prompt": SECRET, "stop": [SECRET], "max_tokens": 3}), 0)
    )
    assert shown == {"model": "m", "prompt": "<8 chars>", "max_tokens": 3}
    odd = shorten_repr(
        repr({"model": "x" * 900, "prompt": [SECRET], "messages": SECRET, "prompt_token_ids": SECRET}), 0
    )
    assert SECRET not in odd
    assert len(odd) < 300
