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
from pagefleet.api.gateway.app import ROUTES
from pagefleet.api.gateway.body import RequestBody
from pagefleet.api.gateway.chat_completions import ChatBody, Message
from pagefleet.api.gateway.completions import CompletionBody
from pagefleet.api.gateway.generation_body import ResponseFormat, StreamOptions

PROBES = [(endpoint, probe) for endpoint in ENDPOINTS for probe in endpoint.probes]
INSIDE = {"messages": Message, "stream_options": StreamOptions, "response_format": ResponseFormat}
OF_OPENAI = {
    ChatBody: chat_create_params.CompletionCreateParamsBase,
    CompletionBody: completion_create_params.CompletionCreateParamsBase,
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
    for name in body.model_fields:
        if name in INSIDE and not place:
            yield from fields_of(INSIDE[name], f"{name}.")
        else:
            yield f"{place}{name}"


@pytest.mark.parametrize(("endpoint", "body"), list(zip(ENDPOINTS, OF_OPENAI, strict=True)))
def test_every_parameter_has_a_row(endpoint, body):
    probed = {probe.field for probe in endpoint.probes}
    assert set(fields_of(body)) <= probed
    outer = {name.partition(".")[0] for name in probed}
    assert set(OF_OPENAI[body].__annotations__) <= outer


def test_what_stands_inside_of_a_body_is_known_here():
    named = {Message, StreamOptions, ResponseFormat, ChatBody, CompletionBody}
    kinds, left = set(), [RequestBody]
    while left:
        found = left.pop().__subclasses__()
        kinds |= {
            each
            for each in found
            if each.__module__.startswith("pagefleet.") and "Generation" not in each.__name__
        }
        left += found
    assert kinds == named


def test_every_address_has_a_row():
    probed = {endpoint.path for endpoint in ENDPOINTS} | {each.path for each in ADDRESSES}
    spelled = {"{job_id:path}": "{job}", "{name:path}": "null"}
    routes = {re.sub(r"\{.*?\}", lambda found: spelled[found[0]], route.path) for route in ROUTES}
    assert routes <= probed
    assert "no" in {each.support for each in ADDRESSES if each.path not in routes}
    assert all(each.support == "no" for each in ADDRESSES if each.path not in routes)


def test_the_page_is_what_the_probes_say():
    assert PAGE.read_text() == page(), "run python -m ops.compatibility"


def test_how_it_differs_is_said():
    assert all(probe.words for _, probe in PROBES if probe.support != "yes")
