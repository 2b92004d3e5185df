"""A request's messages and tools as its model's chat template takes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pagefleet.api.contract.chat_message import ChatMessage, Tool
from pagefleet.workers.prompting.chat_format import JSON

_ASKED: Final = """\
You can call these functions:
{tools}
To call one, answer with this JSON and nothing else: {{"name": <its name>, "arguments": <an object>}}
To call several, answer with a list of such objects. Where no function helps, answer in words."""
_MISTRAL_ID: Final = re.compile("[A-Za-z0-9]{9}")


class Told(NamedTuple):
    """What a chat template is given."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def for_template(
    messages: Sequence[ChatMessage], tools: Sequence[Tool] | None, tool_parser: str | None
) -> list[Told]:
    """One way after the other, where a template may refuse the first: some know no system message."""
    told = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    if tool_parser not in (None, JSON):
        return [Told([_as_template_has_it(message, tool_parser) for message in messages], told or None)]
    plain = _in_turns(messages)
    if not told:
        return [Told(plain)]
    asked = _ASKED.format(tools="\n".join(json.dumps(tool["function"]) for tool in told))
    if plain[0]["role"] in ("system", "developer"):
        return [Told(_begun_with(asked, plain))]
    return [Told([{"role": "system", "content": asked}, *plain]), Told(_begun_with(asked, plain))]


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


def _begun_with(asked: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With this in the system message, or else before what the user says first."""
    if messages[0]["role"] in ("system", "developer"):
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{asked}".lstrip()}, *messages[1:]]
    place = next((index for index, message in enumerate(messages) if message["role"] == "user"), 0)
    first = {**messages[place], "content": f"{asked}\n\n{messages[place]['content']}"}
    return [*messages[:place], first, *messages[place + 1 :]]


def _in_turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """What a function returned is one turn with what the user says next to it: templates that know no tools
    often want the roles to alternate."""
    turns: list[tuple[dict[str, Any], list[str]]] = []
    was_result = False
    for message in messages:
        said, is_result = _plain(message), message.role == "tool"
        if turns and turns[-1][0]["role"] == said["role"] == "user" and (is_result or was_result):
            turns[-1][1].append(said["content"])
        else:
            turns.append((said, [said["content"]]))
        was_result = is_result
    return [{**said, "content": "\n\n".join(contents)} for said, contents in turns]


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
