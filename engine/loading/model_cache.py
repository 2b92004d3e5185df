"""The folder of converted checkpoints: who may write to it when, what is in it.

    <cache_dir>/models/<slug>-<hash>/    one converted checkpoint, complete as soon as it is there
    <cache_dir>/models/.partial-*        one being written; left behind only by a process that was killed
    <cache_dir>/hashes/                  hashes of large files, by path, size and time of change
    <cache_dir>/locks/                   one a checkpoint, held while it is written or removed

Any number of processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

HASH_DIGITS = 16
MANIFEST = "pagefleet.json"
"""Written last into a converted checkpoint: where it came from."""


@dataclass(frozen=True)
class CachedModel:
    """One converted checkpoint."""

    name: str
    """The folder's name: what `remove_cached` takes."""
    path: Path
    source: str
    """What it was converted from, as it was given then."""
    num_bytes: int


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "pagefleet"


def list_cached(cache_dir: Path | None = None) -> list[CachedModel]:
    """The converted checkpoints, by name."""
    folder = (cache_dir or default_cache_dir()) / "models"
    return [_describe(manifest) for manifest in sorted(folder.glob(f"[!.]*/{MANIFEST}"))]


def remove_cached(cache_dir: Path | None, name: str) -> bool:
    """Deletes one converted checkpoint; False if there is none of that name.

    Engines that have it loaded keep running: their files stay mapped until they close them.
    """
    root = cache_dir or default_cache_dir()
    for model in list_cached(root):
        if model.name == name:
            with _lock(root, name):
                # A reader sees all of it or nothing.
                trash = Path(tempfile.mkdtemp(dir=model.path.parent, prefix=f".partial-{name}-"))
                model.path.rename(trash / name)
                shutil.rmtree(trash)
            return True
    return False


def get_or_convert(cache_dir: Path, name: str, source: str, convert: Callable[[Path], None]) -> Path:
    """The folder `name`; where it isn't there, `convert` fills an empty one that then becomes it.

    Of several processes that come at once, one converts and the others wait. What `convert` raises is
    passed on and leaves nothing behind.
    """
    folder = cache_dir / "models" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(cache_dir, name):
        if folder.is_dir():
            return folder
        for stale in folder.parent.glob(f".partial-{name}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".partial-{name}-"))
        try:
            convert(partial)
            (partial / MANIFEST).write_text(json.dumps({"source": source}), encoding="utf-8")
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def entry_name(source: str, content_hash: str) -> str:
    """`<slug>-<hash>`: a name that a person recognises, and that no other content has."""
    slug = re.sub(r"[^a-z0-9.]+", "-", source.lower()).strip("-.") or "model"
    return f"{slug}-{content_hash[:HASH_DIGITS]}"


def file_hash(cache_dir: Path, path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change, so that a warm start reads nothing."""
    memo = _memo(cache_dir, path)
    if memo.is_file():
        return memo.read_text(encoding="ascii")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False, encoding="ascii") as partial:
        partial.write(digest)
    Path(partial.name).replace(memo)
    return digest


def known_hash(cache_dir: Path, path: Path) -> str | None:
    """What :func:`file_hash` remembers of the file as it is, without reading it."""
    memo = _memo(cache_dir, path)
    return memo.read_text(encoding="ascii") if memo.is_file() else None


def _memo(cache_dir: Path, path: Path) -> Path:
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return cache_dir / "hashes" / hashlib.sha256(identity.encode()).hexdigest()


def _describe(manifest: Path) -> CachedModel:
    folder = manifest.parent
    source = json.loads(manifest.read_text(encoding="utf-8"))["source"]
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return CachedModel(folder.name, folder, source, num_bytes)


def _lock(cache_dir: Path, name: str) -> FileLock:
    path = cache_dir / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
