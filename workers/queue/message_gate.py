"""MessageGate: validate every message from the broker before Celery or the engine sees it.

Celery and kombu trust the contents of a queue: a broken message ends the consumer, and a message that they
cannot decode is logged in full, including its prompt. The rules (``ops/garbage.md`` lists all of them):

- A message is bad if it is not a JSON object in kombu's format, is too large or compressed, has a body that
  is not JSON, or names an unknown task.
- A bad message with a readable id is replaced by a refusal under that id. The refusal is handled like any
  message: it stays unacknowledged until its failed result is stored (workers/attempt/message_rejector.py).
- A bad message without a readable id is dropped, and its beginning is kept for an operator.
- A control message that is not a command is dropped.
- Each is counted (``WorkerStatus.num_bad_messages``) and logged once, with the reason and without its text.

No rule loses a job: the sweeper sends a job in an open ledger again, from its hash.
A message that passes is changed in two ways: its queue becomes the place to restore it to, and it carries no
text into events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Collection
from types import MethodType
from typing import Any, Final

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from pydantic import ValidationError

from pagefleet.api.contract.errors import FleetError
from pagefleet.workers.queue.message_rules import (
    ADVICE,
    OVERHEAD_BYTES,
    BadMessage,
    check_command,
    check_task,
    readable_id,
    refusal,
)
from pagefleet.workers.queue.unacked import put_back

logger = logging.getLogger(__name__)

_KEPT_BYTES: Final = 1024


class MessageGate:
    """Validates messages and counts the bad ones.

    Args:
        max_request_bytes: the largest request that a message may contain.
        keep: stores a JSON description of a dropped message.
    """

    def __init__(self, max_request_bytes: int, keep: Callable[[str], None] = lambda _: None) -> None:
        self._max_body = (max_request_bytes + OVERHEAD_BYTES) * 4 // 3
        self._keep = keep
        self._popped: Any = None
        self.num_bad = 0

    def record_fault(self, what: str, reason: str) -> None:
        """Count and log a bad message or an unreadable job. Callers do not log it again."""
        self.num_bad += 1
        logger.error("%s: %s", what, reason)

    def guard(self, channel: Any, queues: Collection[str], tasks: Collection[str]) -> None:
        """Put the gate between a kombu channel's connection and its consumers. Written against kombu 5.7.

        Args:
            queues: queues of task messages; messages from elsewhere are control commands.
            tasks: the names of the known tasks.
        """
        transport, poller = channel.connection, channel.connection.cycle
        deliver, on_readable = transport._deliver, poller.on_readable

        def guarded_deliver(_transport: Any, message: Any, queue: str) -> None:
            if queue in queues:
                message = self._examined(message, queue, tasks)
            elif (reason := self._fault(check_command, message)) is not None:
                self.record_fault("a control message is dropped", reason)
                return
            if message is None:
                return
            if queue not in transport._callbacks:
                # The consumer was cancelled while the reply was on its way. kombu would log a warning and put
                # the message at the back of the queue. A command is dropped: this worker no longer listens.
                if queue in queues:
                    put_back(channel, message)
                return
            try:
                deliver(message, queue)
            except (ValueError, RecursionError) as error:
                # The message's JSON is valid, so keep guarded_on_readable from reporting it as broken.
                raise RuntimeError("Celery failed on a message that passed the gate") from error

        def guarded_on_readable(_poller: Any, fileno: int) -> None:
            self._popped = None
            try:
                on_readable(fileno)
            except (ValueError, RecursionError) as error:
                self._drop(self._popped, f"it is not JSON ({type(error).__name__})")

        transport._deliver = MethodType(guarded_deliver, transport)
        poller.on_readable = MethodType(guarded_on_readable, poller)
        self._remember_replies(channel.client)

    def examiner(self, tasks: Collection[str]) -> Callable[[bytes, str], Any]:
        """Return a function that decodes and validates a raw message of a queue.

        It returns what Celery receives: the message, a refusal instead of it, or None.

        Args:
            tasks: the names of the known tasks.
        """

        def examine(raw: bytes, queue: str) -> Any:
            try:
                message = loads(bytes_to_str(raw))
            except (ValueError, RecursionError) as error:
                self._drop(raw, f"it is not JSON ({type(error).__name__})")
                return None
            return self._examined(message, queue, tasks)

        return examine

    def _remember_replies(self, client: Any) -> None:
        """Keep the raw reply: kombu does not return a message that it cannot decode."""
        parse = client.parse_response

        def remember(_client: Any, connection: Any, command: str, **options: Any) -> Any:
            reply = parse(connection, command, **options)
            if command == "BRPOP" and reply:
                self._popped = reply[1]
            return reply

        client.parse_response = MethodType(remember, client)

    def _examined(self, message: Any, queue: str, tasks: Collection[str]) -> Any:
        """Return what Celery receives: the message, a refusal instead of it, or None."""
        reason = self._fault(check_task, message, queue, tasks)
        if reason is None:
            return message
        job_id = readable_id(message)
        if job_id is None:
            self._drop(message, reason)
            return None
        self.record_fault(f"a message of {queue} is refused", reason)
        return refusal(message, job_id, queue, reason)

    def _drop(self, what: Any, reason: str) -> None:
        self.record_fault("a message is dropped", reason)
        if what is None:  # from the control channel
            return
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            raw = what if isinstance(what, bytes) else json.dumps(what).encode()
            entry = {
                "time": time.time(),
                "reason": reason,
                "num_bytes": len(raw),
                "sha256": hashlib.sha256(raw).hexdigest(),
                "begins": raw[:_KEPT_BYTES].decode(errors="replace"),
            }
            with contextlib.suppress(FleetError):
                self._keep(json.dumps(entry))

    def _fault(self, check: Callable[..., None], message: Any, *args: Any) -> str | None:
        """Return why the message is bad; None if it is valid."""
        try:
            if isinstance(message, dict) and len(str(message.get("body", ""))) > self._max_body:
                return "it is larger than max_request_bytes"
            check(message, *args)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = [str(part) for part in first["loc"] if re.fullmatch(r"[a-z_-]+", str(part))]
            advice = ADVICE.get(path[-1], "") if path else ""
            return f"{'.'.join(path) or 'message'}: {first['type']}{advice}"
        except (BadMessage, RecursionError) as error:
            return str(error)
        return None
