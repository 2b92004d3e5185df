"""Compares the prose and the names of files with the patterns."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ops.language.names import bad_names
from ops.language.patterns import PATTERNS
from ops.language.prose import READERS, prose_of

ROOT: Final = Path(__file__).parents[2]
_EXCEPT: Final = ("ops/language/", "tests/", "LICENSE")
"""This check quotes what it rejects; the tests contain sentences of models."""


class Hit(NamedTuple):
    path: Path
    line: int
    found: str
    text: str
    advice: str

    def __str__(self) -> str:
        place = f"{self.path.relative_to(ROOT)}:{self.line}"
        return f"{place}: {self.found!r}: write {self.advice}\n    {self.text.strip()}"


def files_of(paths: Sequence[str]) -> list[Path]:
    """The files under ``paths`` that git knows; all of them without a path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [ROOT / name for name in names if not name.startswith(_EXCEPT)]
    return [path for path in found if path.suffix in READERS and path.is_file() and not path.is_symlink()]


def check(path: Path) -> Iterator[Hit]:
    for number, text in prose_of(path):
        for pattern in PATTERNS:
            for match in pattern.expression.finditer(text):
                yield Hit(path, number, match[0], text, pattern.advice)
    if path.suffix == ".py":
        for number, name, advice in bad_names(path.read_text()):
            yield Hit(path, number, name, "", f"a name with {advice}")
