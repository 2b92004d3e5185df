"""Every command's help has examples, and every example is a command line that is accepted."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from pagefleet.api.cli.main import main


def walk(command, path=("pagefleet",)):
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            yield from walk(command.get_command(context, name), (*path, name))


COMMANDS = dict(walk(main))


def examples_of(command):
    """Lines that begin with ``pagefleet``, or pipe into it; what follows after two blanks explains them."""
    for line in (command.help or "").splitlines():
        text = re.split(r"\s{2,}", line.strip())[0]
        words = shlex.split(text, comments=True) if re.search(r"(^|\| )pagefleet ", text) else []
        if words:
            yield words[words.index("pagefleet") :]


def parse(words):
    """As click would for a call, but for running it."""
    words = words[: next((i for i, word in enumerate(words) if word in ("|", ">", ">>")), None)]
    command, context = main, main.make_context("pagefleet", words[1:])
    while isinstance(command, click.Group) and context._protected_args + context.args:
        name, command, rest = command.resolve_command(context, context._protected_args + context.args)
        context = command.make_context(name, rest, parent=context)
    return command


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_it_has_examples_that_are_accepted(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "person.schema.json").write_text("{}")
    examples = list(examples_of(COMMANDS[path]))
    assert examples, f"`{' '.join(path)} --help` shows no example"
    for words in examples:
        called = parse(words)
        if len(path) > 1 and not isinstance(COMMANDS[path], click.Group):
            assert called.name == path[-1], words


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_explained(path):
    options = [param for param in COMMANDS[path].params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_check_can_fail():
    for words in (
        ["pagefleet", "generate", "x", "--max-token"],
        ["pagefleet", "generat"],
        ["pagefleet", "dead", "x"],
    ):
        with pytest.raises(click.UsageError):
            parse(words)
