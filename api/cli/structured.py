"""Options that constrain the generated text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO, Any, Final, TypeVar, cast

import click

from pagefleet.api.contract.structured_outputs import StructuredOptions

F = TypeVar("F", bound=Callable[..., Any])


# Lazy: a file that is not read does not need to be closed.
_FILE: Final = click.File(lazy=True)


def structured_options(command: F) -> F:
    options = [
        click.option(
            "--json-schema",
            type=_FILE,
            metavar="FILE",
            help="Generate JSON that matches the JSON schema in FILE.",
        ),
        click.option("--json-object", is_flag=True, help="Generate a JSON object."),
        click.option("--regex", metavar="REGEX", help="Generate text that matches REGEX as a whole."),
        click.option(
            "--choice",
            multiple=True,
            metavar="TEXT",
            help="Generate exactly TEXT. Given several times, one of the texts.",
        ),
        click.option(
            "--grammar",
            type=_FILE,
            metavar="FILE",
            help="Generate text that matches the Lark or EBNF grammar in FILE.",
        ),
        click.option("--wind-down", is_flag=True, help="Close JSON before --max-tokens cuts it off."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def structured_outputs(options: dict[str, Any]) -> StructuredOptions | None:
    """Remove these options from those of a command and return them; None if none was given."""
    schema: IO[str] | None = options.pop("json_schema")
    grammar: IO[str] | None = options.pop("grammar")
    found = {
        "json_schema": _read_json(schema) if schema is not None else None,
        "json_object": options.pop("json_object") or None,
        "regex": options.pop("regex"),
        "choice": list(options.pop("choice")) or None,
        "grammar": grammar.read() if grammar is not None else None,
        "wind_down": options.pop("wind_down") or None,
    }
    given = {name: value for name, value in found.items() if value is not None}
    return cast(StructuredOptions, given) if given else None


def _read_json(file: IO[str]) -> Any:
    try:
        return json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"{file.name} is not JSON: {error}", param_hint="--json-schema") from None
