"""``GET /openapi.json``: what there is to ask for, from the same models that check it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.gateway.chat_completions import ChatBody
from pagefleet.api.gateway.completions import CompletionBody
from pagefleet.api.gateway.tokenize import DetokenizeBody, TokenizeBody
from pagefleet.api.sampling import SamplingParams

_REF: Final = "#/components/schemas/{model}"
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_FAULTS: Final = {
    "400": "a field is wrong; `param` names it",
    "401": "no key, or a wrong one",
    "403": "the key may not use this model",
    "404": "no such model or job",
    "408": "it took too long",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "a limit is reached: see Retry-After",
    "500": "a fault of the server's",
    "503": "no Redis, or no worker that answers",
}


async def show(request: Request) -> Response:
    return JSONResponse(document())


@cache
def document() -> dict[str, Any]:
    schemas: dict[str, Any] = {"Error": _ERROR}
    for model in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody):
        _add(schemas, model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pagefleet gateway", "version": version("pagefleet")},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
        "paths": _paths(),
    }


def _paths() -> dict[str, Any]:
    job = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
    after = {
        "name": "after",
        "in": "query",
        "schema": {"type": "string"},
        "description": "the id of the last event that was seen; Last-Event-ID says the same",
    }
    return {
        "/v1/chat/completions": {"post": _generating("Answer a conversation", "ChatBody")},
        "/v1/completions": {"post": _generating("Continue a text", "CompletionBody")},
        "/v1/models": {"get": _plain("The models that the key may use", "401", "503")},
        "/v1/models/{name}": {
            "get": {
                **_plain("One model", "401", "403", "404", "503"),
                "parameters": [{**job, "name": "name"}],
            }
        },
        "/v1/jobs": {
            "get": {
                **_plain("The newest jobs of the key's tenant", "400", "401", "503"),
                "parameters": [_LIMIT, {**after, "description": "the id of the last job that was seen"}],
            }
        },
        "/v1/jobs/{job_id}/cancel": {
            "post": {
                **_plain("End a job; its answer so far is kept", "401", "404", "503"),
                "parameters": [job],
            }
        },
        "/v1/jobs/{job_id}": {
            "get": {**_plain("A job's state and answer", "401", "404", "503"), "parameters": [job]},
            "delete": {**_plain("Cancel and remove a job", "401", "404", "503"), "parameters": [job]},
        },
        "/v1/jobs/{job_id}/stream": {
            "get": {
                **_operation("The rest of an answer", {"200": _EVENTS}, "400", "401", "404", "503"),
                "parameters": [job, after],
            }
        },
        "/tokenize": {"post": _asking("The tokens of a text or a conversation", "TokenizeBody")},
        "/detokenize": {"post": _asking("The text of tokens", "DetokenizeBody")},
        "/health": {"get": {**_plain("The process lives"), "security": []}},
        "/ready": {"get": {**_plain("Redis answers and each model has a worker", "503"), "security": []}},
    }


_LIMIT: Final[dict[str, Any]] = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 100},
}
_JSON_ANSWER: Final[dict[str, Any]] = {
    "description": "the answer",
    "content": {"application/json": {"schema": {"type": "object"}}},
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "server-sent events",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def _generating(summary: str, body: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model=body)}}}
    answers = {
        "200": {**_JSON_ANSWER, "content": {**_JSON_ANSWER["content"], **_EVENTS["content"]}},
        "202": {"description": "background: the job's id", "content": _JSON_ANSWER["content"]},
    }
    return {
        **_operation(summary, answers, *_FAULTS),
        "requestBody": {"required": True, "content": content},
    }


def _asking(summary: str, body: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model=body)}}}
    return {**_plain(summary, *_FAULTS), "requestBody": {"required": True, "content": content}}


def _plain(summary: str, *faults: str) -> dict[str, Any]:
    return _operation(summary, {"200": _JSON_ANSWER}, *faults)


def _operation(summary: str, answers: dict[str, Any], *faults: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    refusals = {fault: {"description": _FAULTS[fault], "content": error} for fault in faults}
    return {"summary": summary, "responses": {**answers, **refusals}}


def _add(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    sampling = SamplingParams.model_json_schema()["properties"]
    for name, field in schema["properties"].items():
        # Ranges and meanings are those of the sampling parameters, which check them.
        if name in sampling and name not in ("logprobs", "seed", "top_k"):
            field["description"] = sampling[name].get("description", "")
    schemas[model.__name__] = schema
