"""Whatever ``/openapi.json`` allows, and what it does not, is answered as it says: asked by schemathesis.

Always the same requests: a failure comes again. Ranges are not in the schema, so a 400 is fair; the checks
are that nothing else than what is documented comes back, and in its shape.
"""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi_checks

from pagefleet.api.gateway.openai.openapi import document

FEW = {"post": 10, "get": 3, "delete": 3}
MANY = {"post": 60, "get": 10, "delete": 10}
CHECKS = [
    not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.negative_data_rejection,
]
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ASKED = [
    (method, path, mode)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
    # Of the others nothing can be wrong.
    for mode in (
        [POSITIVE, NEGATIVE] if "requestBody" in operation or path.endswith("/stream") else [POSITIVE]
    )
]


@pytest.fixture(scope="module")
def schema(gateway):
    return schemathesis.openapi.from_dict(httpx.get(f"{gateway.url}/openapi.json").json())


def make_answerable(body):
    """A model that is there, and an answer that is short: else few of them come further than a 404."""
    for name in ("max_completion_tokens", "n", "min_tokens", "best_of", "logprobs", "allowed_token_ids"):
        body.pop(name, None)
    body |= {"model": "null", "max_tokens": 2}
    # Refused without a stream, without tools, or without a call that is answered.
    body.pop("stream_options", None)
    body.pop("tool_choice", None)
    # The document allows any part of a message, the gateway those that it knows.
    for message in body.get("messages") or ():
        message["role"] = "user"
        message.pop("tool_calls", None)
        message.pop("tool_call_id", None)
        if isinstance(message.get("content"), list):
            message["content"] = "Hi"
    if not body.get("prompt", True):
        body["prompt"] = "Hi"


def what_is_there(gateway, path):
    """In place of a random name, which nothing has."""
    if "{job_id}" in path:
        body = {"model": "null", "prompt": "Hi", "max_tokens": 3}
        return {"job_id": httpx.post(f"{gateway.url}/v1/completions", json=body).json()["id"]}
    return {"name": "null"} if "{name}" in path else None


@pytest.mark.parametrize(
    "num_examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("is_there", [True, False], ids=["is there", "random"])
@pytest.mark.parametrize(("method", "path", "mode"), ASKED)
def test_it_answers_as_its_document_says(gateway, schema, method, path, mode, is_there, num_examples):
    named = what_is_there(gateway, path) if is_there else None
    statuses = Counter()
    operation = schema[path][method]

    @settings(
        max_examples=num_examples[method], derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=named))
    def ask(case):
        if mode is POSITIVE and is_there and isinstance(case.body, dict):
            make_answerable(case.body)
        reply = case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=20)
        statuses[reply.status_code] += 1

    ask()
    # Refusals alone would prove little.
    if mode is POSITIVE and is_there:
        assert statuses[200] + statuses[202] > 0, statuses
