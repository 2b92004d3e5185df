"""docs/compatibility.md is true: each of its rows is a probe, sent here to a running gateway.

A row is missing nowhere: not of what the gateway knows, and not of what the ``openai`` package can send.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

sys.path.insert(0, str(Path(__file__).parents[2]))

from ops.compatibility.addresses import ADDRESSES
from ops.compatibility.page import ENDPOINTS, PAGE, page
from ops.compatibility.probe import ask, ask_address
from pagefleet.api.gateway.answers.generation_body import (
    GenerationBody,
    JsonSchema,
    ResponseFormat,
    StreamOptions,
)
from pagefleet.api.gateway.app import ROUTES, pattern_of
from pagefleet.api.gateway.http.body import RequestBody
from pagefleet.api.gateway.openai.chat_completions import ChatBody
from pagefleet.api.gateway.openai.chat_message import CalledFunction, Message, MessageCall, Part
from pagefleet.api.gateway.openai.completions import CompletionBody
from pagefleet.api.gateway.openai.tokenize import DetokenizeBody, TokenizeBody
from pagefleet.api.gateway.openai.tools import Function, NamedFunction, ToolBody, ToolChoice

PROBES = [(endpoint, probe) for endpoint in ENDPOINTS for probe in endpoint.probes]
INSIDE = {
    "messages": Message,
    "messages.content": Part,
    "messages.tool_calls": MessageCall,
    "messages.tool_calls.function": CalledFunction,
    "stream_options": StreamOptions,
    "response_format": ResponseFormat,
    "response_format.json_schema": JsonSchema,
    "tools": ToolBody,
    "tools.function": Function,
    "tool_choice": ToolChoice,
    "tool_choice.function": NamedFunction,
}
OF_OPENAI = {
    ChatBody: chat_create_params.CompletionCreateParamsBase,
    CompletionBody: completion_create_params.CompletionCreateParamsBase,
    TokenizeBody: None,
    DetokenizeBody: None,
}


@pytest.mark.parametrize(
    ("endpoint", "probe"), PROBES, ids=[f"{where.path}-{probe.parameter}" for where, probe in PROBES]
)
def test_a_row_of_the_page(http, jobs, endpoint, probe):
    answer = ask(http, jobs, endpoint, probe)
    assert probe.shows(answer), answer


@pytest.fixture(scope="module")
def job_id(gateway):
    body = {"model": "null", "prompt": "Hi", "max_tokens": 2}
    return httpx.post(f"{gateway.url}/v1/completions", json=body).json()["id"]


@pytest.mark.parametrize("address", ADDRESSES, ids=lambda each: f"{each.method} {each.path}")
def test_an_address_of_the_page(http, job_id, address):
    answer = ask_address(http, address, job_id)
    assert address.shows(answer), answer


def fields_of(body, place=""):
    """All that a body can hold, with what stands inside of it."""
    for name in (field.alias or name for name, field in body.model_fields.items()):
        inside = INSIDE.get(f"{place}{name}") if body not in (TokenizeBody, DetokenizeBody) else None
        if inside is None:
            yield f"{place}{name}"
        else:
            yield from fields_of(inside, f"{place}{name}.")


@pytest.mark.parametrize(("endpoint", "body"), list(zip(ENDPOINTS, OF_OPENAI, strict=True)))
def test_every_parameter_has_a_row(endpoint, body):
    probed = {probe.field for probe in endpoint.probes}
    assert set(fields_of(body)) <= probed
    outer = {name.partition(".")[0] for name in probed}
    if OF_OPENAI[body] is not None:
        assert set(OF_OPENAI[body].__annotations__) <= outer


def kinds_of(kind):
    for each in kind.__subclasses__():
        yield from kinds_of(each)
        if each.__module__.startswith("pagefleet.") and each is not GenerationBody:
            yield each


def test_what_stands_inside_of_a_body_is_known_here():
    assert set(kinds_of(RequestBody)) == {*INSIDE.values(), *OF_OPENAI}


def test_every_address_has_a_row():
    probed = {endpoint.path for endpoint in ENDPOINTS} | {each.path for each in ADDRESSES}
    spelled = {"{job_id:path}": "{job}", "{name:path}": "null", "{path}": "main.js"}
    routes = {re.sub(r"\{.*?\}", lambda found: spelled[found[0]], pattern_of(route)) for route in ROUTES}
    assert routes <= probed
    assert "no" in {each.support for each in ADDRESSES if each.path not in routes}
    assert all(each.support == "no" for each in ADDRESSES if each.path not in routes)


def test_the_page_is_what_the_probes_say():
    assert PAGE.read_text() == page(), "run python -m ops.compatibility"


def test_how_it_differs_is_said():
    assert all(probe.words for _, probe in PROBES if probe.support != "yes")
