"""Links, ``make`` targets and ``pagefleet`` commands in the pages exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from pagefleet.api.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "ops").rglob("*.md")])
PAST = {"CHANGELOG.md", *(path.name for path in (ROOT / "ops" / "decisions").iterdir())}
"""They may name what is gone."""
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?<!from )\bpagefleet ([a-z]+)\b([^|&;#\n]*)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors_of(page):
    """As GitHub makes them from headings: lower case, punctuation removed, spaces as hyphens."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_exist(page):
    missing = []
    for link in _LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            missing.append(link)
    assert missing == []


@every_page
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def options_of(name, words):
    """The options of the command, or of its subcommand; `up` passes unknown ones to its workers."""
    command = main.get_command(None, name)
    options = set()
    while command is not None:
        options |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        is_group = isinstance(command, click.Group)
        command = (
            next((found for word in words if (found := command.get_command(None, word))), None)
            if is_group
            else None
        )
    return options | (options_of("worker", []) if name == "up" else set())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in PAST], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_and_their_options_exist(page):
    wrong = []
    for block, span in _CODE.findall(page.read_text()):
        for name, rest in _COMMAND.findall((block or span).replace("\\\n", " ")):
            words = rest.replace(",", " ").split()
            if name not in main.list_commands(None):
                wrong.append(name)
                continue
            used = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
            wrong += [f"{name} {option}" for option in used - options_of(name, words)]
    assert wrong == []
