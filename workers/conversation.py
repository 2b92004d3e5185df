"""A request's messages and tools as its model's chat template takes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final

from pagefleet.api.chat_message import ChatMessage, Tool
from pagefleet.workers.chat_format import JSON

_ASKED: Final = """\
You can call these functions:
{tools}
To call one, answer with this JSON and nothing else: {{"name": <its name>, "arguments": <an object>}}
To call several, answer with a list of such objects. Where no function helps, answer in words."""
_MISTRAL_ID: Final = re.compile("[A-Za-z0-9]{9}")


def for_template(
    messages: Sequence[ChatMessage], tools: Sequence[Tool] | None, tool_parser: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """The messages, and the tools where the template can say them itself."""
    told = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    if tool_parser in (None, JSON):
        return _in_words(messages, told), None
    return [_as_template_has_it(message, tool_parser) for message in messages], told or None


def _as_template_has_it(message: ChatMessage, tool_parser: str | None) -> dict[str, Any]:
    said = message.model_dump(exclude_none=True)
    for call in said.get("tool_calls", ()):
        # Templates write the arguments as JSON: as a text they would stand there in quotes.
        call["function"]["arguments"] = _parsed(call["function"]["arguments"])
    if tool_parser == "mistral":
        for holder, name in [(said, "tool_call_id"), *((call, "id") for call in said.get("tool_calls", ()))]:
            if name in holder:
                holder[name] = _short(holder[name])
    return said


def _in_words(messages: Sequence[ChatMessage], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a template that knows no tools."""
    said = [_plain(message) for message in messages]
    if tools:
        asked = _ASKED.format(tools="\n".join(json.dumps(tool["function"]) for tool in tools))
        if said[0]["role"] in ("system", "developer"):
            said[0]["content"] = f"{said[0]['content']}\n\n{asked}".lstrip()
        else:
            said.insert(0, {"role": "system", "content": asked})
    return said


def _plain(message: ChatMessage) -> dict[str, Any]:
    said = message.model_dump(exclude_none=True, exclude={"tool_calls", "tool_call_id"})
    calls = [
        json.dumps({"name": call.function.name, "arguments": _parsed(call.function.arguments)})
        for call in message.tool_calls or ()
    ]
    if calls:
        written = calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
        said["content"] = f"{message.content}\n{written}".lstrip()
    if message.role == "tool":
        said |= {"role": "user", "content": f"The function returned: {message.content}"}
    return said


def _parsed(arguments: str) -> Any:
    """As a text where the model that wrote them broke off."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _short(call_id: str) -> str:
    """Mistral's templates take ids of nine letters and digits only."""
    return call_id if _MISTRAL_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]
