"""What monitors are shown of a job: which model and how much is asked of it; of its prompt only the length,
unless somebody asked for more."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any, Final

from pagefleet.api.contract.messages import GenerateRequest

HIDDEN: Final = "..."
_PLAIN: Final = ("max_tokens", "tenant", "lane", "priority", "model")
_PROMPTS: Final = ("prompt", "messages", "prompt_token_ids")
_MARK: Final = "… "
_MAX_CHARS: Final = 64
_MAX_REPR_CHARS: Final = 8192
_SHORTENED: Final = re.compile(r"(?P<text>.*)(?P<size><\d+ [a-z]+>)", re.DOTALL)


def shown_request(request: GenerateRequest, prompt_chars: int) -> str:
    """A request as a dict's ``repr``, the form in which Celery's events carry keyword arguments."""
    fields = {name: getattr(request, name) for name in ("model", "tenant", *_PROMPTS)}
    fields["max_tokens"] = request.sampling.max_tokens
    if request.lane != "interactive":
        fields["lane"] = request.lane
    if request.priority != GenerateRequest.model_fields["priority"].default:
        fields["priority"] = request.priority
    return repr(shortened(fields, prompt_chars))


def shown_repr(text: object, prompt_chars: int) -> str:
    """The same for a ``repr`` that an event brought: anybody's, so that nothing is believed of it."""
    try:
        if not isinstance(text, str) or len(text) > _MAX_REPR_CHARS:
            return HIDDEN
        fields = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return HIDDEN
    shown = shortened(fields, prompt_chars) if isinstance(fields, dict) else {}
    return repr(shown) if shown else HIDDEN


def shortened(fields: Mapping[Any, Any], prompt_chars: int) -> dict[str, Any]:
    """Names and numbers as they are, prompts as their first characters and their size; all else is left out.
    What is short already stays."""
    shown: dict[str, Any] = {}
    for name in _PROMPTS:
        value = fields.get(name)
        if isinstance(value, str) and (short := _SHORTENED.fullmatch(value)):
            shown[name] = _cut(short["text"], prompt_chars) + short["size"]
        elif value is not None:
            text, size = _measured(name, value)
            shown[name] = _cut(text, prompt_chars) + f"<{size}>"
    for name in _PLAIN:
        value = fields.get(name)
        if isinstance(value, int | float):
            shown[name] = value
        elif isinstance(value, str):
            shown[name] = value[:_MAX_CHARS]
    return shown


def _cut(text: str, num_chars: int) -> str:
    """Of what is already cut the mark is not counted."""
    text = text.removesuffix(_MARK)
    return text[:num_chars] + _MARK if text and num_chars else ""


def _measured(name: str, value: Any) -> tuple[str, str]:
    """A prompt's text, the last message's of a conversation, and its size in words."""
    if name == "prompt_token_ids":
        return "", f"{len(value) if isinstance(value, list) else 0} tokens"
    if name == "prompt":
        return str(value), f"{len(str(value))} chars"
    contents = _contents(value)
    return "".join(contents[-1:]), f"{sum(map(len, contents))} chars"


def _contents(messages: Any) -> list[str]:
    """Of chat messages, as they come in a request or as dicts."""
    each = messages if isinstance(messages, list) else []
    return [str(one.get("content") if isinstance(one, dict) else getattr(one, "content", "")) for one in each]
