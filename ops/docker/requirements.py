"""Prints what pyproject.toml requires, with the extras named: the layer that does not change with the code.

python requirements.py pyproject.toml [EXTRA ...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

path, *extras = sys.argv[1:]
project = tomllib.loads(Path(path).read_text())["project"]
groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
for group in groups:
    print(*group, sep="\n")  # noqa: T201 - its output is what it is for
