"""The Lua scripts, one file for each state change of a job. ``prelude.lua`` is prepended to each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

NAMES: Final = (
    "submit",
    "pop",
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
"""Scripts that a server at its ``maxmemory`` rejects. The others write little or free memory; without them
running jobs could not end and workers could not keep their leases."""
_ALLOW_OOM: Final = "#!lua flags=allow-oom\n"


@dataclass(frozen=True, slots=True)
class Script:
    name: str
    source: str
    sha: str


@cache
def load_script(name: str) -> Script:
    """Return the script with the prelude in front of it, and its SHA-1 for EVALSHA."""
    folder = files(__name__)
    shebang = "" if name in _NEEDS_MEMORY else _ALLOW_OOM
    source = shebang + (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
