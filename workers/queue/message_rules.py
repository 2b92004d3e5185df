"""The format of valid task and control messages, and the refusal that replaces an invalid task message.

``ops/garbage.md`` lists the rules.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import uuid
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError

from pagefleet.api.contract import keys
from pagefleet.api.protocol.prepared import JOB_ID

OVERHEAD_BYTES: Final = 64 * 2**10
"""Allowed size of callbacks and headers, in addition to the request."""

REFUSAL: Final = "pagefleet_refusal"
"""The header of a refusal; its value is the reason."""

ADVICE: Final = {
    "content-type": " (send it with serializer='json')",
    "content-encoding": " (send it with serializer='json')",
    "compression": " (send it without compression)",
    "id": " (must be 1 to 255 characters without spaces)",
    "task": " (send it with task_protocol = 2)",
}
"""How the sender can fix an invalid part of a message."""

Name = Annotated[str, Field(min_length=1, max_length=255)]
Number = Annotated[int | float, Field(ge=0, le=2**31)]
Object = dict[str, Any]


class BadMessage(Exception):
    """Why a message is bad. The text contains nothing from the message."""


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Properties(_Wire):
    delivery_tag: Name
    delivery_info: Object
    body_encoding: Literal["base64"]
    correlation_id: Name | None = None
    reply_to: str | None = None
    priority: Annotated[int, Field(ge=0, le=9)] | None = None


class _Envelope(_Wire):
    body: str
    properties: _Properties
    headers: Object
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")


class _TaskHeaders(_Wire):
    task: Name
    id: Annotated[str, Field(pattern=JOB_ID)]
    eta: Name | None = None
    compression: None = None
    expires: Name | None = None
    pagefleet_refusal: Annotated[str, Field(max_length=1000)] | None = None
    timelimit: Annotated[list[Number | None], Field(min_length=2, max_length=2)] | None = None
    retries: Annotated[int, Field(ge=0, le=2**31)] = 0
    root_id: Name | None = None
    parent_id: Name | None = None
    group: Name | None = None
    group_index: int | None = None
    shadow: Name | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Annotated[int, Field(ge=0, le=2**31)] | None = None
    stamped_headers: list[str] | None = None
    stamps: Object | None = None


class _Lineage(_Wire):
    root_id: Name | None = None
    parent_id: Name | None = None
    group: Name | None = None
    group_index: int | None = None


class _Embed(_Wire):
    callbacks: list[Object] | None = None
    errbacks: list[Object] | None = None
    chain: list[Object] | None = None
    chord: Object | None = None


class _Reply(_Wire):
    exchange: str
    routing_key: str


class _Command(_Wire):
    method: Name
    arguments: Object | None = None
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    reply_to: _Reply | None = None
    ticket: str | None = None


_BODY: Final = TypeAdapter(tuple[list[Any], Object, _Embed])
_TIME: Final = TypeAdapter[Any](AwareDatetime | NaiveDatetime)


def check_task(message: Any, queue: str, tasks: Collection[str]) -> None:
    """Raises: BadMessage, ValidationError."""
    envelope = _Envelope.model_validate(message)
    headers = _TaskHeaders.model_validate(envelope.headers)
    if headers.task not in tasks:
        raise BadMessage("it names an unknown task")
    for moment in (headers.eta, headers.expires):
        if moment is not None:
            _TIME.validate_strings(moment)
    args, kwargs, _ = _BODY.validate_python(_as_tuple(_json_of(envelope.body)))
    if headers.task == keys.GENERATE_TASK:
        _check_generate(headers, args, kwargs)
        # Events carry these two headers; those of a bare message would contain its prompt.
        message["headers"] |= {"argsrepr": "()", "kwargsrepr": "{...}"}
    elif headers.eta is not None:
        raise BadMessage("only pagefleet.generate takes an eta or a countdown")
    # A restored message is sent there. An exchange that was not declared would lose it.
    message["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}


def check_command(message: Any) -> None:
    """Raises: BadMessage, ValidationError."""
    envelope = _Envelope.model_validate(message)
    clock = envelope.headers.get("clock")
    if "compression" in envelope.headers or not isinstance(clock, int | None) or (clock or 0) > 2**62:
        raise BadMessage("it does not have the headers of a Celery command")
    _Command.model_validate(_json_of(envelope.body))


def _check_generate(headers: _TaskHeaders, args: list[Any], kwargs: Mapping[str, Any]) -> None:
    if "job_id" not in kwargs:
        return
    if kwargs["job_id"] != headers.id:
        raise BadMessage("it names two different jobs; pass the job's id as task_id, not as job_id")
    if args or headers.eta or headers.expires or any(headers.timelimit or ()):
        raise BadMessage("it has a job_id, so it cannot have arguments, eta, expires or time limits")


def readable_id(message: Any) -> str | None:
    """Return the task id of an invalid message; None if it has none.

    Celery's task protocol 1 has the id in the body.
    """
    if not isinstance(message, dict):
        return None
    headers = message.get("headers")
    job_id = headers.get("id") if isinstance(headers, dict) else None
    if job_id is None:
        with contextlib.suppress(BadMessage, TypeError, RecursionError):
            body = _json_of(message.get("body", ""))
            job_id = body.get("id") if isinstance(body, dict) else None
    is_id = isinstance(job_id, str) and re.fullmatch(JOB_ID, job_id) and job_id.isprintable()
    return job_id if is_id else None


def refusal(message: dict[str, Any], job_id: str, queue: str, reason: str) -> dict[str, Any]:
    """Return a message with the same id and callbacks that carries the reason."""
    embed: dict[str, Any] = {}
    lineage: dict[str, Any] = {}
    with contextlib.suppress(ValidationError):
        lineage = _Lineage.model_validate(message.get("headers")).model_dump(exclude_none=True)
    with contextlib.suppress(BadMessage, ValidationError, TypeError, RecursionError, LookupError):
        found = _Embed.model_validate(_json_of(message["body"])[2]).model_dump(exclude_none=True)
        embed = found if len(json.dumps(found)) <= OVERHEAD_BYTES else {}
    text = f"The message was refused: {reason}. See docs/celery.md for the format of task messages."
    headers = {"lang": "py", "task": keys.GENERATE_TASK, "id": job_id, "retries": 0, REFUSAL: text, **lineage}
    return {
        "body": base64.b64encode(json.dumps([[], {}, embed]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {**headers, "argsrepr": "()", "kwargsrepr": "{...}"},
        "properties": {
            "correlation_id": job_id,
            "delivery_mode": 2,
            "priority": 0,
            "body_encoding": "base64",
            # A new tag: the old one may belong to another message.
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _json_of(body: str) -> Any:
    try:
        return json.loads(base64.b64decode(body, validate=True))
    except ValueError as error:
        raise BadMessage(f"its body is not JSON ({type(error).__name__})") from None


def _as_tuple(value: Any) -> Any:
    """JSON has no tuples, and strict validation does not accept a list as a tuple."""
    return tuple(value) if isinstance(value, list) else value
