"""BareMessage: a job as a service that only knows Celery asks for it: arguments and Celery's options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import MAX_DEADLINE_S
from pagefleet.api.protocol.operations import Schedule

CALLBACKS: Final = ("callbacks", "errbacks", "chain", "chord")
LINEAGE: Final = ("root_id", "parent_id", "group", "group_index")
_INPUTS: Final = ("prompt", "messages", "prompt_token_ids")


@dataclass(frozen=True, slots=True)
class BareMessage:
    """``not_before`` and ``start_by`` are seconds since the epoch: Celery's ``eta`` and ``expires``.
    ``time_limits`` are seconds, hard and soft."""

    kwargs: Mapping[str, Any]
    args: Sequence[Any] = ()
    lane: Lane = "interactive"
    not_before: float | None = None
    start_by: float | None = None
    time_limits: Sequence[float | None] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    """The message's headers and callbacks, as Celery's ``Context`` reads them."""

    def fields(self) -> dict[str, Any]:
        """The request's fields. What a task before it in a chain returned comes as positional argument: a
        string is the prompt, a dict holds fields.

        Raises:
            InvalidRequest: other positional arguments, or one that says what a keyword says too.
        """
        fields = {"lane": self.lane, **self._positional(), **self.kwargs}
        deadlines = [limit for limit in self.time_limits if limit]
        own = fields.get("deadline_s")
        if isinstance(own, int | float):
            deadlines.append(own)
        if deadlines and (own is None or isinstance(own, int | float)):
            fields["deadline_s"] = min(*deadlines, MAX_DEADLINE_S)
        return fields

    def schedule(self) -> Schedule:
        canvas = {name: value for name, value in self.context.items() if value is not None}
        has_callbacks = any(canvas.get(name) for name in CALLBACKS)
        return Schedule(
            None if self.not_before is None else int(self.not_before * 1000),
            None if self.start_by is None else int(self.start_by * 1000),
            json.dumps(canvas) if has_callbacks else None,
        )

    def _positional(self) -> dict[str, Any]:
        if not self.args:
            return {}
        if len(self.args) > 1:
            raise InvalidRequest(
                f"pagefleet.generate takes one positional argument, not {len(self.args)}: a prompt, or a "
                "dict of fields. Give the rest by name.",
                param="args",
            )
        (value,) = self.args
        if isinstance(value, str):
            given = {"prompt": value}
        elif isinstance(value, dict):
            given = value
        else:
            raise InvalidRequest(
                "The positional argument of pagefleet.generate must be a string (the prompt) or a dict of "
                f"fields, not {type(value).__name__}; a task before it in the chain may make one of it.",
                param="args",
            )
        if {"job_id", "choices"} <= given.keys():
            raise InvalidRequest(
                "The positional argument is the result of another generate job; put a task between the two "
                "that returns the next prompt, or make the signature immutable.",
                param="args",
            )
        inputs = [name for name in _INPUTS if name in given or name in self.kwargs]
        twice = sorted(given.keys() & self.kwargs.keys()) or (inputs if len(inputs) > 1 else [])
        if twice:
            raise InvalidRequest(
                f"{' and '.join(twice)}: given by position and by name; leave one out, or make the signature "
                "immutable so that the task before it passes nothing on.",
                param=twice[0],
            )
        return given
