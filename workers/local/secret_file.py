"""Write files that only their owner can read: passwords, and URLs that contain them."""

from __future__ import annotations

import os
from pathlib import Path


def create_secret(file: Path, text: str) -> None:
    """Create a file with mode 0600 atomically. An existing file is kept."""
    part = _write_part(file, text)
    try:
        os.link(part, file)
    except FileExistsError:
        pass
    finally:
        part.unlink()


def replace_secret(file: Path, text: str) -> None:
    """Write a file with mode 0600 atomically: readers see the old or the new content."""
    _write_part(file, text).replace(file)


def _write_part(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return part
