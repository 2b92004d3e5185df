"""MessageGate: nothing that came over the broker reaches Celery or the engine before it was looked at.

Celery and kombu trust what stands on a queue: a broken message ends the consumer, and what they cannot read
they log whole, a prompt in it. The rules (``ops/garbage.md`` has all of them in a table):

- what is no JSON object of kombu's shape, too large, compressed, not JSON inside, or no task of ours, is bad;
- a bad message whose id can be read is replaced by a refusal under that id, which goes the way of any other:
  it is in the ledger of unacknowledged messages until its failed result is stored
  (workers/attempt/refuser.py);
- a bad message without an id is dropped, and a part of it is kept for an operator;
- a control message that is no command is dropped;
- each is counted (``WorkerStatus.num_bad_messages``) and logged once, with its reason and never its text.

Neither costs a job: one that stands in an open ledger is sent again from its hash by the sweeper.
A message that passes names its queue as the place to be restored to, and carries no text into events.
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
    """Looks at messages, counts the bad ones.

    Args:
        max_request_bytes: of a request that a message carries itself.
        keep: told, as JSON, of what came over a queue and names no job.
    """

    def __init__(self, max_request_bytes: int, keep: Callable[[str], None] = lambda _: None) -> None:
        self._max_body = (max_request_bytes + OVERHEAD_BYTES) * 4 // 3
        self._keep = keep
        self._popped: Any = None
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
                message = self._examined(message, queue, tasks)
            elif (reason := self._fault(check_command, message)) is not None:
                self.count("a control message is dropped", reason)
                return
            if message is None:
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
            self._popped = None
            try:
                on_readable(fileno)
            except (ValueError, RecursionError) as error:
                self._drop(self._popped, f"it is no JSON ({type(error).__name__})")

        transport._deliver = MethodType(guarded_deliver, transport)
        poller.on_readable = MethodType(guarded_on_readable, poller)
        self._remember_replies(channel.client)

    def _remember_replies(self, client: Any) -> None:
        """kombu gives away what it cannot decode."""
        parse = client.parse_response

        def remember(_client: Any, connection: Any, command: str, **options: Any) -> Any:
            reply = parse(connection, command, **options)
            if command == "BRPOP" and reply:
                self._popped = reply[1]
            return reply

        client.parse_response = MethodType(remember, client)

    def _examined(self, message: Any, queue: str, tasks: Collection[str]) -> Any:
        """What Celery gets in place of a message: itself, a refusal, or None."""
        reason = self._fault(check_task, message, queue, tasks)
        if reason is None:
            return message
        job_id = readable_id(message)
        if job_id is None:
            self._drop(message, reason)
            return None
        self.count(f"a message of {queue} is refused", reason)
        return refusal(message, job_id, queue, reason)

    def _drop(self, what: Any, reason: str) -> None:
        self.count("a message is dropped", reason)
        if what is None:  # of the control channel
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
        """Why a message is bad; None: it is not."""
        try:
            if isinstance(message, dict) and len(str(message.get("body", ""))) > self._max_body:
                return "it is larger than max_request_bytes allows"
            check(message, *args)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = [str(part) for part in first["loc"] if re.fullmatch(r"[a-z_-]+", str(part))]
            advice = ADVICE.get(path[-1], "") if path else ""
            return f"{'.'.join(path) or 'message'}: {first['type']}{advice}"
        except (BadMessage, RecursionError) as error:
            return str(error)
        return None
