"""The Lua scripts: one file for each state change of a job, ``prelude.lua`` before each of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

NAMES: Final = (
    "submit",
    "claim",
    "mark",
    "step",
    "end",
    "release",
    "callbacks",
    "close",
    "beat",
    "cancel",
    "watch",
    "unlock",
)


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """The named script with the prelude in front of it, and the SHA-1 that EVALSHA knows it by."""
    folder = files(__name__)
    source = (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
