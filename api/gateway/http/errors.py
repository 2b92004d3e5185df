"""Errors as OpenAI's clients expect them: an HTTP status and ``{message, type, param, code}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.chat.errors import MissingField, UnsupportedField
from pagefleet.api.contract.errors import (
    ContextTooLong,
    FleetError,
    InvalidRequest,
    JobDead,
    JobDeleted,
    JobExists,
    JobLost,
    JobNotFound,
    NoAnswer,
    QueueFull,
    RedisUnavailable,
    UnknownModel,
    UnknownParameter,
)
from pagefleet.api.contract.requests import without_internals

logger = logging.getLogger(__name__)

INVALID: Final = "invalid_request_error"
SERVER: Final = "server_error"
_CLIENT_GONE: Final = 499
_CODES: Final = {
    "missing": "missing_required_parameter",
    **dict.fromkeys(("greater_than", "greater_than_equal", "less_than", "less_than_equal"), "invalid_value"),
    **dict.fromkeys(("too_short", "too_long", "string_too_short", "string_too_long"), "invalid_value"),
    "string_pattern_mismatch": "invalid_value",
}
"""Codes of pydantic's error types; every other type is ``invalid_type``."""
FIELD_NAMES: Final[Mapping[str, str]] = {
    "prompt_token_ids": "prompt",
    "structured_outputs": "response_format",
    "detached": "background",
    "token_ids": "tokens",
}
"""Fields of a job with another name over HTTP; ``GenerationBody.names`` has those of one request."""


class ApiError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)


def api_error(error: FleetError, names: Mapping[str, str] = FIELD_NAMES) -> ApiError:
    """Return the response to an error of the fleet. Errors that the client did not cause have no details.

    Args:
        names: by field of the job, its name in the request.
    """
    match error:
        case ContextTooLong():
            return _invalid(error, names, "context_length_exceeded")
        case UnknownParameter():
            return _invalid(error, names, "unknown_parameter")
        case MissingField():
            return _invalid(error, names, "missing_required_parameter")
        case UnsupportedField():
            return _invalid(error, names, "unsupported_parameter")
        case InvalidRequest():
            return _invalid(error, names, "invalid_value")
        case UnknownModel():
            return ApiError(
                404,
                "The model does not exist or you do not have access to it; /v1/models lists yours.",
                param="model",
                code="model_not_found",
            )
        case JobExists():
            message = "job_id: another job has this id; choose a different one."
            return ApiError(409, message, param="job_id", code="job_exists")
        case JobDeleted():
            return ApiError(410, "The job was deleted.", param="job_id", code="job_deleted")
        case JobNotFound():
            return ApiError(
                404,
                "The job does not exist, or its results have expired.",
                param="job_id",
                code="job_not_found",
            )
        case QueueFull() if error.param == "tenant":
            return _too_many(
                "You have too many open requests; retry when one of them has finished.", "too_many_open"
            )
        case QueueFull() if error.param == "tenant_bytes":
            message = (
                "Your stored requests and results reach the limit; delete jobs or wait until some expire."
            )
            return _too_many(message, "too_much_stored")
        case QueueFull():
            return _too_many("The queue of the model is full; retry later.", "queue_full")
        case RedisUnavailable():
            logger.warning("Redis is unavailable: %s", error.message)
            message = "The service is temporarily unavailable; retry later."
            return ApiError(
                503, message, kind=SERVER, code="service_unavailable", headers={"retry-after": "1"}
            )
        case NoAnswer():
            message = "No worker of this model answered in time; retry later."
            return ApiError(503, message, kind=SERVER, code="no_worker", headers={"retry-after": "1"})
        case JobDead():
            return ApiError(
                500, "The job was abandoned after repeated failures.", kind=SERVER, code="job_dead"
            )
        case JobLost():
            return ApiError(500, "The job was lost.", kind=SERVER, code="job_lost")
        case _:
            # The message may quote the prompt: it is in the job's hash only.
            logger.error("job %s failed: %s", error.job_id, error.code)
            return ApiError(500, "The job failed.", kind=SERVER, code="job_failed")


def invalid_body(error: ValidationError) -> ApiError:
    """Return the first validation error of a body as one sentence that names the field."""
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json")
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    message = without_internals(first["msg"])
    if first["type"] in ("model_type", "model_attributes_type") and not param:
        return ApiError(400, "The body must be a JSON object.", code="invalid_type")
    if not param:
        return ApiError(400, f"{message}.", code="invalid_type")
    code = _CODES.get(first["type"], "invalid_type")
    return ApiError(400, f"{param}: {message[0].lower()}{message[1:]}.", param=param, code=code)


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def on_fleet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FleetError)
    return api_error(error).response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle the router's errors: an unknown path or method."""
    assert isinstance(error, HTTPException)
    where = f"({request.method} {request.url.path})"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        refusal = ApiError(405, f"Method not allowed {where}.", code="method_not_supported")
        refusal.headers |= error.headers or {}
    else:
        refusal = ApiError(error.status_code, f"Invalid URL {where}.", code="unknown_url")
    return refusal.response()


async def on_fault(request: Request, error: Exception) -> Response:
    """Handle a bug; uvicorn logs the exception."""
    return ApiError(500, "The server had an error while processing your request.", kind=SERVER).response()


async def on_client_gone(request: Request, error: Exception) -> Response:
    """The response is not sent; the metrics count its status."""
    return Response(status_code=_CLIENT_GONE)


HANDLERS: Final = {
    ApiError: on_api_error,
    FleetError: on_fleet_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_client_gone,
    Exception: on_fault,
}


def _too_many(message: str, code: str) -> ApiError:
    return ApiError(429, message, kind="requests", code=code, headers={"retry-after": "1"})


def _invalid(error: InvalidRequest, names: Mapping[str, str], code: str) -> ApiError:
    """Return the error with the request's name of the field as ``param`` and at the start of the message."""
    if error.param is None:
        return ApiError(400, error.message, code=code)
    param, message = _translated(error.param, names), error.message
    if message.startswith(error.param):
        message = param + message[len(error.param) :]
    return ApiError(400, message, param=param, code=code)


def _translated(param: str, names: Mapping[str, str]) -> str:
    """Translate the longest known prefix of a path: ``prompt_token_ids.0`` becomes ``prompt[0]``."""
    parts = param.split(".")
    known = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names), 0)
    begin = names[".".join(parts[:known])] if known else ""
    rest = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts[known:])
    return (begin + rest).removeprefix(".")
