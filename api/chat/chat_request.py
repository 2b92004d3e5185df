"""From the fields of a chat call to those of its job: tools become a reading and, if needed, a grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pagefleet.api.chat.call_schema import call_or_format, demanded_call
from pagefleet.api.chat.choice_reader import special_tokens
from pagefleet.api.chat.errors import refused
from pagefleet.api.chat.tool_use import ToolUse
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.requests import build_request
from pagefleet.api.contract.structured_outputs import StructuredOutputs

TOOL_FIELDS: Final = ("tools", "tool_choice", "parallel_tool_calls")


def chat_fields(fields: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Return a job's fields for a chat call to this model.

    ``tools``, ``tool_choice`` and ``parallel_tool_calls`` decide which tools the model learns of, how its
    answer is read (``reading``), which special tokens the text keeps for that, and, if a call is demanded or
    a format is given besides tools, what the text must be (``structured_outputs``).

    Raises:
        InvalidRequest.
    """
    job = {name: value for name, value in fields.items() if name not in TOOL_FIELDS}
    use = ToolUse(*(fields.get(name) for name in TOOL_FIELDS))
    constraint = _constraint(use, job.get("structured_outputs"))
    if constraint is not None:
        job["structured_outputs"] = constraint
    if use.offered is not None:
        job["tools"] = use.offered
    reading = use.reading(card, has_stops=bool(job.get("stop") or job.get("stop_token_ids")))
    if reading is not None:
        job["reading"] = reading
        kept = job.get("kept_special_tokens") or []
        if isinstance(kept, list | tuple):
            job["kept_special_tokens"] = [*kept, *special_tokens(reading)]
    return job


def check_chat_fields(fields: Mapping[str, Any]) -> None:
    """Check what can be checked without the model's card.

    Raises:
        InvalidRequest.
    """
    given = {name: value for name, value in fields.items() if value is not None and name not in TOOL_FIELDS}
    build_request({**given, "model": given.get("model", "-")})


def _constraint(use: ToolUse, given: Any) -> dict[str, Any] | None:
    """Return what the text must be because of the tools; None if they leave that to ``given``.

    Raises: InvalidRequest.
    """
    if isinstance(given, StructuredOutputs):
        given = given.model_dump(exclude_defaults=True)
    if given is None or use.mode == "none":
        return demanded_call(use)
    if use.is_demanded:
        raise refused(
            "structured_outputs",
            "cannot be combined with a tool_choice that demands a call; set tool_choice to auto or none",
        )
    if not isinstance(given, Mapping):
        return None
    if given.get("json_object"):
        schema: Any = {"type": "object"}
    elif "json_schema" in given:
        schema = given["json_schema"]
    else:
        raise refused(
            "structured_outputs",
            "with tools, only a JSON schema or json_object is supported; use one of them, or set tool_choice "
            "to none",
        )
    kept = {name: given[name] for name in ("wind_down",) if name in given}
    return {**call_or_format(use, schema), **kept}
