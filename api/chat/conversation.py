"""Turn a request's messages and tools into the input of its model's chat template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pagefleet.api.chat.tool_parsers import GENERIC, TOOL_PARSERS
from pagefleet.api.contract.chat_message import ChatMessage, Tool

_TOOLS_PROMPT: Final = """\
You can call these functions:
{tools}
To call one, answer with this JSON and nothing else: {{"name": <its name>, "arguments": <an object>}}
To call several, answer with a list of such objects. If no function helps, answer in words."""
_LETTERS_AND_DIGITS: Final = re.compile("[A-Za-z0-9]+")


class TemplateInput(NamedTuple):
    """The variables of a chat template that the conversation decides."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def template_inputs(
    messages: Sequence[ChatMessage], tools: Sequence[Tool] | None, tool_parser: str | None
) -> list[TemplateInput]:
    """Return the inputs to try in this order: a template without system messages refuses the first one.

    Args:
        tool_parser: the model's. With ``json``, or None on cards of older workers, the template does not
            know tools: they are described in a system message, calls and their results become plain text.
    """
    described = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    if tool_parser not in (None, GENERIC):
        return [TemplateInput([_for_parser(message, tool_parser) for message in messages], described or None)]
    plain = _in_turns(messages)
    if not described:
        return [TemplateInput(plain)]
    prompt = _TOOLS_PROMPT.format(tools="\n".join(json.dumps(tool["function"]) for tool in described))
    merged = TemplateInput(_merged(prompt, plain))
    if plain[0]["role"] in ("system", "developer"):
        return [merged]
    return [TemplateInput([{"role": "system", "content": prompt}, *plain]), merged]


def _for_parser(message: ChatMessage, tool_parser: str) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True)
    calls = fields.get("tool_calls", ())
    for call in calls:
        # Templates serialise the arguments themselves; a string would be quoted once more.
        call["function"]["arguments"] = _parsed(call["function"]["arguments"])
    parser = TOOL_PARSERS.get(tool_parser)
    if parser is not None and parser.id_chars is not None:
        for holder, name in [(fields, "tool_call_id"), *((call, "id") for call in calls)]:
            if name in holder:
                holder[name] = _short_id(holder[name], parser.id_chars)
    return fields


def _merged(prompt: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the prompt to the system message; without one, to the first message of the user."""
    if messages[0]["role"] in ("system", "developer"):
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}".lstrip()}, *messages[1:]]
    place = next((index for index, message in enumerate(messages) if message["role"] == "user"), 0)
    first = {**messages[place], "content": f"{prompt}\n\n{messages[place]['content']}"}
    return [*messages[:place], first, *messages[place + 1 :]]


def _in_turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Join a function's result and the user's message next to it into one turn.

    Templates that do not know tools often require that roles alternate.
    """
    turns: list[tuple[dict[str, Any], list[str]]] = []
    was_result = False
    for message in messages:
        fields, is_result = _plain(message), message.role == "tool"
        if turns and turns[-1][0]["role"] == fields["role"] == "user" and (is_result or was_result):
            turns[-1][1].append(fields["content"])
        else:
            turns.append((fields, [fields["content"]]))
        was_result = is_result
    return [{**fields, "content": "\n\n".join(contents)} for fields, contents in turns]


def _plain(message: ChatMessage) -> dict[str, Any]:
    """Return a message without tool fields: its calls, or its result, are part of the content."""
    fields = message.model_dump(exclude_none=True, exclude={"tool_calls", "tool_call_id"})
    calls = [
        json.dumps({"name": call.function.name, "arguments": _parsed(call.function.arguments)})
        for call in message.tool_calls or ()
    ]
    if calls:
        written = calls[0] if len(calls) == 1 else f"[{', '.join(calls)}]"
        fields["content"] = f"{message.content}\n{written}".lstrip()
    if message.role == "tool":
        fields |= {"role": "user", "content": f"The function returned: {message.content}"}
    return fields


def _parsed(arguments: str) -> Any:
    """Return the arguments' value, or their text if the model left them incomplete."""
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _short_id(call_id: str, num_chars: int) -> str:
    """Return an id that a template with this restriction accepts, the same for the same id."""
    if len(call_id) == num_chars and _LETTERS_AND_DIGITS.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:num_chars]
