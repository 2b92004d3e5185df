"""The answers of each address as JSON schemas, for ``/openapi.json``."""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_OBJECT: Final[Schema] = {"type": "object"}
_USAGE: Final = _object(
    {
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
        "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
    }
)
_MESSAGE: Final = _object(
    {"role": {"const": "assistant"}, "content": _or_null(_TEXT), "refusal": {"type": "null"}},
    {"tool_calls": _array(_OBJECT), "reasoning_content": _or_null(_TEXT)},
)
_OF_A_CHOICE: Final[Schema] = {
    "index": _COUNT,
    "logprobs": _or_null(_OBJECT),
    "finish_reason": {"enum": ["stop", "length", "tool_calls", None]},
    "stop_reason": {"type": ["string", "integer", "null"]},
}
_OF_PROMPT: Final[Schema] = {
    "prompt_token_ids": _array(_COUNT),
    "prompt_logprobs": _array(_or_null(_OBJECT)),
}
"""In each choice of a completion, and beside those of a chat."""


def _answer(kind: str, own: Schema) -> Schema:
    is_chat = "message" in own
    in_choice = {"token_ids": _array(_COUNT), **({} if is_chat else _OF_PROMPT)}
    choice = _object({**_OF_A_CHOICE, **own}, in_choice)
    return _object(
        {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _TEXT,
            "system_fingerprint": _or_null(_TEXT),
            "choices": _array(choice),
            "usage": _USAGE,
        },
        _OF_PROMPT if is_chat else {},
    )


_MODEL: Final = _object(
    {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": _TEXT,
        "root": _TEXT,
        "max_model_len": _COUNT,
        "aliases": _array(_TEXT),
        "ready": {"type": "boolean"},
    }
)
_OF_A_JOB: Final[Schema] = {"id": _TEXT, "object": {"const": "job"}}
_STATES: Final = ["queued", "in_progress", "completed", "failed", "cancelled"]
_TIME: Final = _or_null({"type": "number"})
_JOB: Final[Schema] = {
    **_OF_A_JOB,
    "status": {"enum": _STATES},
    "created": _COUNT,
    "model": _TEXT,
    "lane": {"enum": ["interactive", "batch"]},
    "attempts": _COUNT,
    "usage": _USAGE,
    **dict.fromkeys(("enqueued_at", "claimed_at", "first_token_at", "ended_at"), _TIME),
    "error": _or_null(_OBJECT),
}

ANSWERS: Final[dict[str, Schema]] = {
    "ChatCompletion": _answer("chat.completion", {"message": _MESSAGE}),
    "Completion": _answer("text_completion", {"text": _TEXT}),
    "Model": _MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _array(_MODEL)}),
    "Queued": _object({**_OF_A_JOB, "status": {"const": "queued"}}),
    "Job": _object(_JOB, {"result": _or_null(_OBJECT)}),
    "Jobs": _object(
        {
            "object": {"const": "list"},
            "data": _array(_object(_JOB)),
            "first_id": _or_null(_TEXT),
            "last_id": _or_null(_TEXT),
            "has_more": {"type": "boolean"},
        }
    ),
    "Tokens": _object(
        {
            "count": _COUNT,
            "max_model_len": _COUNT,
            "tokens": _array(_COUNT),
            "token_strs": _or_null(_array(_TEXT)),
        }
    ),
    "Prompt": _object({"prompt": _TEXT}),
    "Deleted": _object({**_OF_A_JOB, "deleted": {"const": True}}),
    "Health": _object({"status": {"const": "ok"}}),
    "Ready": _object({"status": {"const": "ready"}, "models": _COUNT}),
    "NotReady": _object({"status": {"const": "not ready"}, "reason": _TEXT}),
}
