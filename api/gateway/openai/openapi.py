"""``GET /openapi.json``: what there is to ask for, from the same models that check it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.contract.sampling import SamplingParams
from pagefleet.api.gateway.openai.chat_completions import ChatBody
from pagefleet.api.gateway.openai.completions import CompletionBody
from pagefleet.api.gateway.openai.openapi_answers import ANSWERS
from pagefleet.api.gateway.openai.tokenize import DetokenizeBody, TokenizeBody

_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
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
    schemas: dict[str, Any] = {"Error": _ERROR, **ANSWERS}
    for model in (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody):
        _add(schemas, model)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pagefleet gateway", "version": version("pagefleet")},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        # A gateway without keys asks for none.
        "security": [{"key": []}, {}],
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
        "/v1/chat/completions": {"post": _generating("Answer a conversation", "Chat")},
        "/v1/completions": {"post": _generating("Continue a text", "")},
        "/v1/models": {"get": _plain("The models that the key may use", "Models", "401", "503")},
        "/v1/models/{name}": {
            "get": {
                **_plain("One model", "Model", "401", "403", "404", "503"),
                "parameters": [{**job, "name": "name"}],
            }
        },
        "/v1/jobs": {
            "get": {
                **_plain("The newest jobs of the key's tenant", "Jobs", "400", "401", "503"),
                "parameters": [_LIMIT, {**after, "description": "the id of the last job that was seen"}],
            }
        },
        "/v1/jobs/{job_id}/cancel": {
            "post": {
                **_plain("End a job; its answer so far is kept", "Job", "401", "404", "503"),
                "parameters": [job],
            }
        },
        "/v1/jobs/{job_id}": {
            "get": {**_plain("A job's state and answer", "Job", "401", "404", "503"), "parameters": [job]},
            "delete": {
                **_plain("Cancel and remove a job", "Deleted", "401", "404", "503"),
                "parameters": [job],
            },
        },
        "/v1/jobs/{job_id}/stream": {
            "get": {
                **_operation("The rest of an answer", {"200": _EVENTS}, "400", "401", "404", "503"),
                "parameters": [job, after],
            }
        },
        "/tokenize": {"post": _asking("The tokens of a text or a conversation", "Tokens", "TokenizeBody")},
        "/detokenize": {"post": _asking("The text of tokens", "Prompt", "DetokenizeBody")},
        "/health": {"get": {**_plain("The process lives", "Health"), "security": []}},
        "/ready": {"get": {**_ready(), "security": []}},
    }


_LIMIT: Final[dict[str, Any]] = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 100},
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "server-sent events",
    "content": {
        "text/event-stream": {
            "schema": {
                "type": "object",
                "description": "one event",
                "required": ["data"],
                "properties": {"data": {"type": "string"}, "id": {"type": "string"}},
            }
        }
    },
}


def _generating(summary: str, kind: str) -> dict[str, Any]:
    answers = {
        "200": {
            "description": "the answer, or its events",
            "content": {**_json(f"{kind}Completion"), **_EVENTS["content"]},
        },
        "202": {"description": "background: the job's id", "content": _json("Queued")},
    }
    return {
        **_operation(summary, answers, *_FAULTS),
        "requestBody": {"required": True, "content": _json(f"{kind or 'Completion'}Body")},
    }


def _asking(summary: str, answer: str, body: str) -> dict[str, Any]:
    return {**_plain(summary, answer, *_FAULTS), "requestBody": {"required": True, "content": _json(body)}}


def _plain(summary: str, answer: str, *faults: str) -> dict[str, Any]:
    return _operation(summary, {"200": {"description": "the answer", "content": _json(answer)}}, *faults)


def _ready() -> dict[str, Any]:
    """The one refusal that no client of OpenAI's reads."""
    ready = _plain("Redis answers and each model has a worker", "Ready")
    ready["responses"]["503"] = {"description": "what is missing", "content": _json("NotReady")}
    return ready


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}


def _operation(summary: str, answers: dict[str, Any], *faults: str) -> dict[str, Any]:
    refusals = {fault: {"description": _FAULTS[fault], "content": _json("Error")} for fault in faults}
    return {"summary": summary, "responses": {**answers, **refusals}}


def _add(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=_REF)
    schemas |= schema.pop("$defs", {})
    sampling = SamplingParams.model_json_schema()["properties"]
    for name, field in schema["properties"].items():
        # Ranges and meanings are those of the sampling parameters, which check them.
        if name in sampling and name not in ("logprobs", "seed", "top_k"):
            field["description"] = sampling[name].get("description", "")
            _copy_bounds(sampling[name], field)
    schemas[model.__name__] = schema


def _copy_bounds(of: dict[str, Any], to: dict[str, Any]) -> None:
    """Of numbers, each kind from its own."""
    for source in of.get("anyOf", [of]):
        for target in to.get("anyOf", [to]):
            if source.get("type") == target.get("type"):
                target |= {name: value for name, value in source.items() if name in _BOUNDS}
