"""The console that commands print tables to."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console(piped_width: int = 200) -> Console:
    """As wide as the terminal. Into a pipe or a file: so wide that no name is cut, and without colours."""
    return Console(width=None if sys.stdout.isatty() else piped_width)
