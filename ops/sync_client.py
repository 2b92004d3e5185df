"""Generate the synchronous client from the asynchronous one (``make sync-client``).

The code under ``asynchronous/`` is written by hand. Its twin under ``synchronous/`` is the same text without
``async`` and ``await``, with the names in ``NAMES`` replaced, and formatted by ruff. What differs by nature
(threads or an event loop) is in hand-written modules that have the same names on both sides: the ``*_io``
modules of ``api/protocol`` and, in ``api/client``, ``batching``, ``context``, ``inbox``, ``resources``,
``subscriber`` and ``tasks``. So the rules here are general; only the store's class has a rule of its own.

PyPI's ``unasync`` is not used: it replaces single tokens, so that docstrings, comments and module paths stay
asynchronous, and its output would have to be formatted by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]

CLIENT: Final = ("client", "connections", "fleet", "presence", "questions", "sources", "token_stream")
TARGETS: Final = {
    "api/protocol/async_job_store.py": "api/protocol/producer_store.py",
    "api/testing/async_fleet.py": "api/testing/fleet.py",
    **{f"api/client/asynchronous/{name}.py": f"api/client/synchronous/{name}.py" for name in CLIENT},
}
"""Asynchronous source -> generated file."""

NAMES: Final = (
    (r"\bawait ", ""),
    (r"\basync (?=def |with |for )", ""),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\banext\(", "next("),
    (r"\baclose\b", "close"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    # The base of JobStore, which adds what only workers do.
    (r"(?<=class )AsyncJobStore\b", "ProducerStore"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync_(?=io\b|job_store\b)", ""),
    (r"\bprotocol\.io\b", "protocol.sync_io"),
    (r"\bconnect_async\b", "connect"),
    (r"\bclient\.asynchronous\b", "client.synchronous"),
)
"""Patterns, in the order in which they are applied, and what they become."""


def generate(source: str) -> str:
    """Return the text of the file that is generated from ``source``, a path relative to the repository."""
    text = (ROOT / source).read_text()
    for pattern, replacement in NAMES:
        text = re.sub(pattern, replacement, text)
    header = f"# Generated from {source} by `make sync-client`; do not edit.\n"
    return _ruff("format", "-", text=_ruff("check", "--select=I,F401", "--fix", "-", text=header + text))


def outdated() -> list[str]:
    """Return the generated files that are missing or differ from their sources."""
    return [
        target
        for source, target in TARGETS.items()
        if not (ROOT / target).exists() or (ROOT / target).read_text() != generate(source)
    ]


def main() -> None:
    for source, target in TARGETS.items():
        (ROOT / target).write_text(generate(source))


def _ruff(*arguments: str, text: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--quiet", "--stdin-filename", "generated.py"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"ruff {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
