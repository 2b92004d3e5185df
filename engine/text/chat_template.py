"""Chat templates: conversations to text, the way the models' authors wrote them down (Jinja).

A template comes with a checkpoint and is not trusted: it runs in Jinja's immutable sandbox and sees nothing
but the messages, the tools, what the caller gives it and the names of a few special tokens. Names, filters
and white-space rules are those that Hugging Face's templates are written for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pagefleet.engine.errors import InvalidRequestError

_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One template; compiled on first use, so that a broken one hurts only those who chat."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The text of the conversation; by default up to where the assistant's next message begins.

        `variables` are the caller's own; those that are the template's by right go first.

        Raises InvalidRequestError with code "chat_template" where the template fails or refuses.
        """
        # Templates test whether a key is there; clients send null for keys they leave out.
        present = [
            _with_thoughts({key: value for key, value in message.items() if value is not None})
            for message in messages
        ]
        if not present:
            raise _failure("A conversation needs at least one message.")
        try:
            return self._template.render(
                {
                    "documents": None,
                    **(variables or {}),
                    **self._special_tokens,
                    "messages": present,
                    "tools": tools or None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        # The template is a program of someone else's: whatever it raises is about this request.
        except Exception as error:
            raise _failure(f"The model's chat template refused the messages: {error}") from error

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        return environment.from_string(self.source)


class _GenerationBlock(Extension):
    """`{% generation %}` marks, for training, what the assistant said; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Under each name that templates read them by, as transformers does."""
    thoughts = next((message[name] for name in _THOUGHTS if name in message), None)
    if thoughts is None:
        return message
    return {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _failure(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, "chat_template", "messages")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model was not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
