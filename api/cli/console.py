"""The console on which commands print tables."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console(piped_width: int = 200) -> Console:
    """Return a console as wide as the terminal, or ``piped_width`` wide and without colours for a pipe."""
    return Console(width=None if sys.stdout.isatty() else piped_width)
