"""The blocks of code in a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    language: str
    text: str


class Line(NamedTuple):
    """One command of a shell block, continuation lines and all, without its comment."""

    page: str
    command: str

    @property
    def program(self):
        return self.command.split()[0]


def blocks_of(page):
    return [Block(page, *found) for found in _BLOCK.findall((ROOT / page).read_text())]


def commands_of(block):
    lines = re.findall(r"^\S(?:.*\\\n)*.*$", block.text, re.MULTILINE)
    return [Line(block.page, line.partition("  # ")[0].rstrip()) for line in lines]
