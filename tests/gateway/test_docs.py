"""docs/gateway.md: what it lists is what there is. Its snippets are run in test_snippets.py."""

from __future__ import annotations

import re
from pathlib import Path

from pagefleet.api.contract.sampling import SamplingParams
from pagefleet.api.gateway.app import ROUTES, pattern_of
from pagefleet.api.gateway.openai.chat_completions import ChatBody
from pagefleet.api.gateway.openai.completions import CompletionBody
from pagefleet.api.gateway.openai.openapi import document

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text()


def test_every_address_is_documented_and_in_openapi():
    paths = {pattern_of(route).replace(":path", "") for route in ROUTES}
    described = set(document()["paths"])
    assert paths - described == {"/", "/page/{path}", "/metrics", "/openapi.json"}
    assert described <= paths
    for path in paths:
        assert f"{path.replace('job_id', 'id')}`" in PAGE, path


def test_every_field_of_a_body_does_something():
    """A field that the model has, and nobody reads, would be ignored in silence."""
    code = "\n".join(path.read_text() for path in (ROOT / "api" / "gateway").rglob("*.py"))
    without_effect = {"user", "metadata", "store"}
    for body in (ChatBody, CompletionBody):
        fields = set(body.model_fields)
        read = {name for name in fields if re.search(rf"self\.{name}\b|body\.{name}\b", code)}
        same = {name for name in fields if name in body.same}
        assert fields - read - same - set(SamplingParams.model_fields) == without_effect
        assert all(body.model_fields[name].description == "no effect" for name in without_effect)
