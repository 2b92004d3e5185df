"""The part of a job's arguments that monitors see: the model, the limits and the prompt's length.

Of the prompt itself they see the first ``prompt_chars`` characters, which is 0 by default.
"""

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


def request_repr(request: GenerateRequest, prompt_chars: int) -> str:
    """Return the visible part of a request, as the ``repr`` of a dict, like arguments in Celery's events."""
    fields = {name: getattr(request, name) for name in ("model", "tenant", *_PROMPTS)}
    fields["max_tokens"] = request.sampling.max_tokens
    if request.lane != "interactive":
        fields["lane"] = request.lane
    if request.priority != GenerateRequest.model_fields["priority"].default:
        fields["priority"] = request.priority
    return repr(shorten(fields, prompt_chars))


def shorten_repr(text: object, prompt_chars: int) -> str:
    """Return the visible part of a ``repr`` from an event, which any program may have sent."""
    try:
        if not isinstance(text, str) or len(text) > _MAX_REPR_CHARS:
            return HIDDEN
        fields = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return HIDDEN
    visible = shorten(fields, prompt_chars) if isinstance(fields, dict) else {}
    return repr(visible) if visible else HIDDEN


def shorten(fields: Mapping[Any, Any], prompt_chars: int) -> dict[str, Any]:
    """Return names and numbers unchanged, and prompts as their first characters and size; no other fields.

    Prompts that are shortened already keep their size.
    """
    visible: dict[str, Any] = {}
    for name in _PROMPTS:
        value = fields.get(name)
        if isinstance(value, str) and (short := _SHORTENED.fullmatch(value)):
            visible[name] = _cut(short["text"], prompt_chars) + short["size"]
        elif value is not None:
            text, size = _measured(name, value)
            visible[name] = _cut(text, prompt_chars) + f"<{size}>"
    for name in _PLAIN:
        value = fields.get(name)
        if isinstance(value, int | float):
            visible[name] = value
        elif isinstance(value, str):
            visible[name] = value[:_MAX_CHARS]
    return visible


def _cut(text: str, num_chars: int) -> str:
    """Return the first characters. The mark of a text that is cut already does not count."""
    text = text.removesuffix(_MARK)
    return text[:num_chars] + _MARK if text and num_chars else ""


def _measured(name: str, value: Any) -> tuple[str, str]:
    """Return a prompt's text (of a conversation, the last message's) and its size as a text."""
    if name == "prompt_token_ids":
        return "", f"{len(value) if isinstance(value, list) else 0} tokens"
    if name == "prompt":
        return str(value), f"{len(str(value))} chars"
    contents = _contents(value)
    return "".join(contents[-1:]), f"{sum(map(len, contents))} chars"


def _contents(messages: Any) -> list[str]:
    """Return the contents of chat messages, which are objects of a request or dicts."""
    each = messages if isinstance(messages, list) else []
    return [str(one.get("content") if isinstance(one, dict) else getattr(one, "content", "")) for one in each]
