"""ChatTemplate: renders a conversation as text with a checkpoint's Jinja template.

A template comes with a checkpoint and is not trusted: it runs in Jinja's immutable sandbox and gets only the
messages, the tools, the caller's variables and a few special tokens. Names, filters and white-space rules
are those of Hugging Face, for which the templates are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pagefleet.engine.errors import ConfigError, InvalidRequestError

_REASONING_KEYS: Final = ("reasoning_content", "thinking", "reasoning")


def read_template_file(path: Path) -> str:
    """Return the source of the template in `path`.

    Raises ConfigError if the file cannot be read or is not a valid template.
    """
    try:
        source = path.read_text(encoding="utf-8-sig")
        _environment().from_string(source)
    except OSError as error:
        raise ConfigError(
            f"chat_template: {path} cannot be read ({error.strerror}); give a file with a Jinja template."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"chat_template: {path} is not UTF-8 text ({error}); convert it.") from error
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"chat_template: {path} is not a valid Jinja template (line {error.lineno}: {error.message}); "
            "correct it."
        ) from error
    return source


class ChatTemplate:
    """One template. It is compiled on first use, so that a broken one fails only chat requests."""

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
        """Return the text of the conversation.

        With `add_generation_prompt` it ends where the assistant's next message begins. `variables` are passed
        to the template but do not replace its standard ones.

        Raises InvalidRequestError with code "chat_template" if the template fails or rejects the messages.
        """
        # Templates test whether a key is present, but clients send null for keys without a value.
        present = [
            _with_reasoning({key: value for key, value in message.items() if value is not None})
            for message in messages
        ]
        if not present:
            raise _failure("messages must contain at least one message.")
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
        # The template is a foreign program: any exception only concerns this request.
        except Exception as error:
            raise _failure(f"messages: the model's chat template rejected them: {error}") from error

    @cached_property
    def _template(self) -> Template:
        return _environment().from_string(self.source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's messages for training; here only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Copy the assistant's reasoning to each key that templates read, as transformers does."""
    reasoning = next((message[name] for name in _REASONING_KEYS if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _failure(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, "chat_template", "messages")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replaces Jinja's filter, which escapes HTML; models are not trained on that."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
