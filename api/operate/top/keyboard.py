"""Keyboard: read single keys from a terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Self


class Keyboard:
    """A context in which keys arrive without Enter. If standard input is not a terminal, no keys arrive."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[int | list[bytes | int]] = []

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def key(self, timeout_s: float) -> str:
        """Return the next key, or an empty string after the timeout."""
        watched = [] if self._fd is None else [self._fd]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        return os.read(self._fd, 1).decode(errors="replace") if self._fd is not None and ready else ""
