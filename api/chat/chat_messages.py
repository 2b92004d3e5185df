"""A conversation's messages as callers write them: content in parts, OpenAI's rules for tool messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pagefleet.api.chat.errors import MissingField, UnsupportedField, refused
from pagefleet.api.contract.chat_message import ChatMessage

PARTS: Final = ("text", "refusal")
"""Types of content parts that are text."""


def conversation_of(messages: Any) -> Any:
    """Return the messages as a job has them. Anything that is not a list of messages is returned as it is:
    the request's validation refuses it.

    Raises:
        InvalidRequest: a content part that is not text, or tool fields in the wrong message.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        return messages
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def check_tool_fields(message: Mapping[str, Any], place: str) -> None:
    """Check which message has which tool fields.

    Args:
        place: where the message is, for errors.

    Raises:
        InvalidRequest.
    """
    role = message.get("role")
    if role == "tool" and message.get("tool_call_id") is None:
        raise refused(f"{place}.tool_call_id", "a message of role tool needs this field", MissingField)
    if message.get("tool_call_id") is not None and role != "tool":
        raise refused(f"{place}.tool_call_id", "only a message of role tool can have this field")
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise refused(f"{place}.tool_calls", "only a message of role assistant can have this field")
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        if isinstance(call, Mapping) and call.get("type", "function") != "function":
            raise refused(f"{place}.tool_calls.{index}.type", "only function is supported", UnsupportedField)


def joined_parts(parts: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of content parts whose types are among ``PARTS``."""
    return "".join(part[part["type"]] or "" for part in parts)


def are_text(parts: Iterable[Any]) -> bool:
    """Return whether each content part is text."""
    return all(
        isinstance(part, Mapping) and part.get("type") in PARTS and isinstance(part.get(part["type"]), str)
        for part in parts
    )


def _message(message: Any, place: str) -> Any:
    if isinstance(message, ChatMessage):
        return message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        return message
    fields = {name: value for name, value in message.items() if value is not None}
    content = fields.get("content")
    if isinstance(content, list):
        if not are_text(content):
            raise refused(f"{place}.content", "only parts of the types text and refusal are supported")
        fields["content"] = joined_parts(content)
    elif content is None and fields.get("role") == "assistant":
        # A message that only calls tools has no content.
        fields["content"] = ""
    if not fields.get("tool_calls", True):
        del fields["tool_calls"]
    check_tool_fields(fields, place)
    return fields
