"""MessageGate: nothing that came over the broker reaches Celery or the engine before it was looked at.

Celery and kombu trust what stands on a queue: a broken message ends the consumer, and what they cannot read
they log whole, a prompt in it. The rules (``ops/garbage.md`` has all of them in a table):

- what is no JSON object of kombu's shape, too large, compressed, not JSON inside, delayed (ETA), or no task
  of ours, is dropped before it counts as taken: never in the ledger of unacknowledged messages;
- so is a control message that is no command;
- each is counted (``WorkerStatus.num_bad_messages``) and logged once, with its reason and never its text.

A dropped message costs no job: one that stands in an open ledger is sent again from its hash by the sweeper.
A message that passes names its queue as the place to be restored to, and carries no text into events.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Collection, Mapping
from types import MethodType
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NaiveDatetime, TypeAdapter, ValidationError

from pagefleet.api import keys
from pagefleet.api.fleet import JOB_ID
from pagefleet.workers.unacked import put_back

logger = logging.getLogger(__name__)

_OVERHEAD_BYTES: Final = 64 * 2**10
"""Callbacks, headers and the like around a request."""

Name = Annotated[str, Field(min_length=1, max_length=255)]
Number = Annotated[int | float, Field(ge=0, le=2**31)]
Object = dict[str, Any]


class BadMessage(Exception):
    """Why a message is dropped; says nothing of what stands in it."""


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
    eta: None = None
    compression: None = None
    expires: Name | None = None
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


class MessageGate:
    """Looks at messages, counts the bad ones.

    Args:
        max_request_bytes: of a request that a message carries itself.
    """

    def __init__(self, max_request_bytes: int) -> None:
        self._max_body = (max_request_bytes + _OVERHEAD_BYTES) * 4 // 3
        self.num_bad = 0

    def count(self, what: str, reason: str) -> None:
        """One more bad message, or unreadable job: logged here and nowhere else."""
        self.num_bad += 1
        logger.error("%s: %s", what, reason)

    def guard(self, channel: Any, queues: Collection[str], tasks: Collection[str]) -> None:
        """Puts the gate between a kombu channel's connection and its consumers. Written against kombu 5.7.

        Args:
            queues: whose messages are tasks; all others are commands.
            tasks: names of the tasks that may be asked for.
        """
        transport, poller = channel.connection, channel.connection.cycle
        deliver, on_readable = transport._deliver, poller.on_readable

        def guarded_deliver(_transport: Any, message: Any, queue: str) -> None:
            if queue in queues:
                passes = self._passes(f"a message of {queue} is dropped", check_task, message, queue, tasks)
            else:
                passes = self._passes("a control message is dropped", check_command, message)
            if not passes:
                return
            if queue not in transport._callbacks:
                # Its consumer was cancelled while the reply was on its way. kombu would warn, and put the
                # message to the back of the queue. A command was for a worker that listened: it is dropped.
                if queue in queues:
                    put_back(channel, message)
                return
            try:
                deliver(message, queue)
            except (ValueError, RecursionError) as error:
                # Not the message's JSON, for which guarded_on_readable would take it.
                raise RuntimeError("Celery failed on a message that passed the gate") from error

        def guarded_on_readable(_poller: Any, fileno: int) -> None:
            try:
                on_readable(fileno)
            except (ValueError, RecursionError) as error:
                self.count("a message is dropped", f"it is no JSON ({type(error).__name__})")

        transport._deliver = MethodType(guarded_deliver, transport)
        poller.on_readable = MethodType(guarded_on_readable, poller)

    def _passes(self, what: str, check: Callable[..., None], message: Any, *args: Any) -> bool:
        try:
            if isinstance(message, dict) and len(str(message.get("body", ""))) > self._max_body:
                raise BadMessage("it is larger than max_request_bytes allows")
            check(message, *args)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(part) for part in first["loc"] if str(part).isidentifier())
            self.count(what, f"{where or 'message'}: {first['type']}")
        except (BadMessage, RecursionError) as error:
            self.count(what, str(error))
        else:
            return True
        return False


def check_task(message: Any, queue: str, tasks: Collection[str]) -> None:
    """Raises: BadMessage, ValidationError."""
    envelope = _Envelope.model_validate(message)
    headers = _TaskHeaders.model_validate(envelope.headers)
    if headers.task not in tasks:
        raise BadMessage("it asks for an unknown task")
    if headers.expires is not None:
        _TIME.validate_strings(headers.expires)
    args, kwargs, _ = _BODY.validate_python(_as_tuple(_json_of(envelope.body)))
    if headers.task == keys.GENERATE_TASK:
        _check_generate(headers.id, args, kwargs)
        # Events carry these two; a bare message's would be its prompt.
        message["headers"] |= {"argsrepr": "()", "kwargsrepr": "{...}"}
    # Where it is restored to. An exchange that nobody declared would lose it.
    message["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}


def check_command(message: Any) -> None:
    """Raises: BadMessage, ValidationError."""
    envelope = _Envelope.model_validate(message)
    clock = envelope.headers.get("clock")
    if "compression" in envelope.headers or not isinstance(clock, int | None) or (clock or 0) > 2**62:
        raise BadMessage("its headers are none of Celery's")
    _Command.model_validate(_json_of(envelope.body))


def _check_generate(job_id: str, args: list[Any], kwargs: Mapping[str, Any]) -> None:
    if args:
        raise BadMessage("generate takes no positional arguments")
    if kwargs.get("job_id", job_id) != job_id:
        raise BadMessage("it names two different jobs")


def _json_of(body: str) -> Any:
    try:
        return json.loads(base64.b64decode(body, validate=True))
    except ValueError as error:
        raise BadMessage(f"its body is no JSON ({type(error).__name__})") from None


def _as_tuple(value: Any) -> Any:
    """JSON has no tuples, and strict validation tells them from lists."""
    return tuple(value) if isinstance(value, list) else value
