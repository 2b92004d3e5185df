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
    "delete",
    "expire",
    "due",
    "refuse",
    "watch",
    "leave",
    "unlock",
    "condemn",
    "rate",
)

_NEEDS_MEMORY: Final = frozenset({"submit", "claim", "step", "watch"})
"""What a server at its ``maxmemory`` refuses. The others write little or give memory back, and without them
no running job could end and no worker could keep its lease."""
_ALLOW_OOM: Final = "#!lua flags=allow-oom\n"


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """The named script with the prelude in front of it, and the SHA-1 that EVALSHA knows it by."""
    folder = files(__name__)
    shebang = "" if name in _NEEDS_MEMORY else _ALLOW_OOM
    source = shebang + (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
