"""BareMessage: a job that a service sends with plain Celery, as task arguments and task options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pagefleet.api.contract.errors import InvalidRequest
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import MAX_DEADLINE_S
from pagefleet.api.protocol.operation_types import Schedule

CALLBACKS: Final = ("callbacks", "errbacks", "chain", "chord")
LINEAGE: Final = ("root_id", "parent_id", "group", "group_index")
_INPUTS: Final = ("prompt", "messages", "prompt_token_ids")


@dataclass(frozen=True, slots=True)
class BareMessage:
    """``not_before`` and ``start_by`` are Celery's ``eta`` and ``expires`` in seconds since the epoch.
    ``time_limits`` are the hard and the soft limit in seconds."""

    kwargs: Mapping[str, Any]
    args: Sequence[Any] = ()
    lane: Lane = "interactive"
    not_before: float | None = None
    start_by: float | None = None
    time_limits: Sequence[float | None] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    """The callbacks and lineage of the message, named as in Celery's ``Context``."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of the request.

        The result of the previous task in a chain arrives as the positional argument: a string is the
        prompt, a dict holds fields.

        Raises:
            InvalidRequest: the positional arguments are of another kind or repeat a keyword argument.
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
                f"pagefleet.generate takes one positional argument, not {len(self.args)}: the prompt, or a "
                "dict of fields. Pass the others by keyword.",
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
                f"fields, not {type(value).__name__}. In a chain, convert the result in a task before it.",
                param="args",
            )
        if {"job_id", "choices"} <= given.keys():
            raise InvalidRequest(
                "The positional argument is the result of another generate job. Put a task between the two "
                "jobs that returns the next prompt, or make the signature immutable.",
                param="args",
            )
        inputs = [name for name in _INPUTS if name in given or name in self.kwargs]
        twice = sorted(given.keys() & self.kwargs.keys()) or (inputs if len(inputs) > 1 else [])
        if twice:
            raise InvalidRequest(
                f"{' and '.join(twice)}: passed by position and by keyword. Pass only one of them; in a "
                "chain, make the signature immutable so that it does not receive the previous result.",
                param=twice[0],
            )
        return given
