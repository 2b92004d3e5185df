"""docs/gateway.md: its curl lines do what they say, and what it lists is what there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from pagefleet.api.gateway.app import ROUTES
from pagefleet.api.gateway.chat_completions import ChatBody
from pagefleet.api.gateway.completions import CompletionBody
from pagefleet.api.gateway.openapi import document
from pagefleet.api.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text()


def curl_lines(text):
    """Each command of the shell blocks that is a curl, continuation lines and all."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [found for block in blocks for found in re.findall(r"^curl (?:.*\\\n)*.*$", block, re.MULTILINE)]


@pytest.fixture(scope="module")
def job_id(gateway):
    body = {"model": "null", "prompt": "Hi", "max_tokens": 20, "seed": 7}
    return httpx.post(f"{gateway.url}/v1/completions", json=body).json()["id"]


LINES = curl_lines(PAGE) + curl_lines((ROOT / "README.md").read_text())


@pytest.mark.parametrize("line", LINES)
def test_its_curl_lines(gateway, job_id, line):
    environment = {**os.environ, "GATEWAY": gateway.url, "MODEL": "null", "JOB": job_id}
    line = line.replace("http://127.0.0.1:8000", gateway.url).replace("smollm2-135m-instruct", "null")
    done = subprocess.run(
        ["bash", "-euc", line.replace("curl ", "curl --fail-with-body ", 1)],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"object":' in done.stdout
    assert '"error"' not in done.stdout


def test_there_are_some():
    assert len(LINES) >= 7


def test_every_address_is_documented_and_in_openapi():
    paths = {route.path.replace(":path", "") for route in ROUTES}
    described = set(document()["paths"])
    assert paths - described == {"/", "/page/{name}", "/metrics", "/openapi.json"}
    assert described <= paths
    for path in paths:
        assert f"{path.replace('job_id', 'id')}`" in PAGE, path


def test_every_field_of_a_body_does_something():
    """A field that the model has, and nobody reads, would be ignored in silence."""
    code = "\n".join(path.read_text() for path in (ROOT / "api" / "gateway").glob("*.py"))
    without_effect = {"user", "metadata", "store"}
    for body in (ChatBody, CompletionBody):
        fields = set(body.model_fields)
        read = {name for name in fields if re.search(rf"self\.{name}\b|body\.{name}\b", code)}
        same = {name for name in fields if name in body.same}
        assert fields - read - same - set(SamplingParams.model_fields) == without_effect
        assert all(body.model_fields[name].description == "no effect" for name in without_effect)
