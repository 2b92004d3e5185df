"""``GET /openapi.json``: the OpenAPI document of the gateway.

pydantic makes its schemas from the models that validate requests and from those of the answers; the paths are
listed here.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.contract.sampling import SamplingParams
from pagefleet.api.gateway.openai.chat_completions import ChatBody
from pagefleet.api.gateway.openai.completions import CompletionBody
from pagefleet.api.gateway.openai.openapi_answers import ANSWERS
from pagefleet.api.gateway.openai.tokenize import DetokenizeBody, TokenizeBody

_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_REF: Final = "#/components/schemas/{model}"
_BODIES: Final = (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody)
_FAULTS: Final = {
    "400": "A parameter is invalid; `param` names it.",
    "401": "The API key is missing or unknown.",
    "403": "The API key cannot use this model.",
    "404": "The model or job does not exist.",
    "408": "The request or the answer took too long.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "A limit is reached; retry after the seconds in Retry-After.",
    "500": "The server failed.",
    "503": "Redis is unavailable, or no worker answers.",
}


async def show(request: Request) -> Response:
    return JSONResponse(document())


@cache
def document() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "pagefleet gateway", "version": version("pagefleet")},
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # The empty requirement: a gateway without API keys accepts every client.
        "security": [{"key": []}, {}],
        "paths": _paths(),
    }


def _paths() -> dict[str, Any]:
    job = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
    after = {
        "name": "after",
        "in": "query",
        "schema": {"type": "string"},
        "description": "id of the last event received; the header Last-Event-ID has precedence",
    }
    return {
        "/v1/chat/completions": {"post": _generating("Create a chat completion", "Chat")},
        "/v1/completions": {"post": _generating("Create a completion", "")},
        "/v1/models": {"get": _plain("List the models that the API key can use", "Models", "401", "503")},
        "/v1/models/{name}": {
            "get": {
                **_plain("Get a model", "Model", "401", "403", "404", "503"),
                "parameters": [{**job, "name": "name"}],
            }
        },
        "/v1/jobs": {
            "get": {
                **_plain("List the newest jobs of the tenant", "Jobs", "400", "401", "503"),
                "parameters": [_LIMIT, {**after, "description": "id of the last job of the previous page"}],
            }
        },
        "/v1/jobs/{job_id}/cancel": {
            "post": {
                **_plain("Cancel a job and keep its tokens", "Job", "401", "404", "503"),
                "parameters": [job],
            }
        },
        "/v1/jobs/{job_id}": {
            "get": {
                **_plain("Get the state and the result of a job", "Job", "401", "404", "503"),
                "parameters": [job],
            },
            "delete": {
                **_plain("Cancel and delete a job", "Deleted", "401", "404", "503"),
                "parameters": [job],
            },
        },
        "/v1/jobs/{job_id}/stream": {
            "get": {
                **_operation("Stream the rest of an answer", {"200": _EVENTS}, "400", "401", "404", "503"),
                "parameters": [job, after],
            }
        },
        "/tokenize": {"post": _asking("Tokenize a text or a conversation", "Tokens", "TokenizeBody")},
        "/detokenize": {"post": _asking("Convert tokens to text", "Prompt", "DetokenizeBody")},
        "/health": {"get": {**_plain("Check that the process runs", "Health"), "security": []}},
        "/ready": {"get": {**_ready(), "security": []}},
    }


_LIMIT: Final[dict[str, Any]] = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 100},
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "Server-sent events",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "description": "One event.",
                "required": ["data"],
                "properties": {"data": {"type": "string"}, "id": {"type": "string"}},
            }
        }
    },
}


def _generating(summary: str, kind: str) -> dict[str, Any]:
    answers = {
        "200": {
            "description": "The answer, or its events if it is streamed.",
            "content": {**_json(f"{kind}Completion"), **_EVENTS["content"]},
        },
        "202": {"description": "The id of the background job.", "content": _json("Queued")},
    }
    return {
        **_operation(summary, answers, *_FAULTS),
        "requestBody": {"required": True, "content": _json(f"{kind or 'Completion'}Body")},
    }


def _asking(summary: str, answer: str, body: str) -> dict[str, Any]:
    return {**_plain(summary, answer, *_FAULTS), "requestBody": {"required": True, "content": _json(body)}}


def _plain(summary: str, answer: str, *faults: str) -> dict[str, Any]:
    return _operation(summary, {"200": {"description": "The answer.", "content": _json(answer)}}, *faults)


def _ready() -> dict[str, Any]:
    """Its 503 does not have the shape of the other errors."""
    ready = _plain("Check that Redis answers and each model has a worker", "Ready")
    ready["responses"]["503"] = {"description": "The reason.", "content": _json("NotReady")}
    return ready


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}


def _operation(summary: str, answers: dict[str, Any], *faults: str) -> dict[str, Any]:
    refusals = {fault: {"description": _FAULTS[fault], "content": _json("Error")} for fault in faults}
    return {"summary": summary, "responses": {**answers, **refusals}}


def _schemas() -> dict[str, Any]:
    models: list[type[BaseModel]] = [*_BODIES, *ANSWERS]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    schemas: dict[str, Any] = found["$defs"]
    for body in _BODIES:
        _describe_sampling(schemas[body.__name__]["properties"])
    return schemas


def _describe_sampling(fields: dict[str, Any]) -> None:
    """Copy ranges and descriptions from the sampling parameters, which check them."""
    sampling = SamplingParams.model_json_schema()["properties"]
    # The fields of these three names have other ranges over HTTP.
    for name in (fields.keys() & sampling.keys()) - {"logprobs", "seed", "top_k"}:
        fields[name]["description"] = sampling[name].get("description", "")
        _copy_bounds(sampling[name], fields[name])


def _copy_bounds(of: dict[str, Any], to: dict[str, Any]) -> None:
    """Copy the bounds of each type of number to the same type."""
    for source in of.get("anyOf", [of]):
        for target in to.get("anyOf", [to]):
            if source.get("type") == target.get("type"):
                target |= {name: value for name, value in source.items() if name in _BOUNDS}
