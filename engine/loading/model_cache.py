"""The cache of converted checkpoints, which any number of processes can share.

<cache_dir>/models/<slug>-<hash>/    a converted checkpoint; complete, because it is renamed into place
<cache_dir>/models/.partial-*        a checkpoint being written; only a killed process leaves one behind
<cache_dir>/hashes/                  hashes of large files, by path, size and modification time
<cache_dir>/locks/                   one lock per checkpoint, held while it is written or removed
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
"""The last file written into a converted checkpoint; it contains the source."""


@dataclass(frozen=True)
class CachedModel:
    """A converted checkpoint in the cache."""

    name: str
    """The name of its folder, for `remove_cached`."""
    path: Path
    source: str
    """The path that it was converted from."""
    num_bytes: int


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "pagefleet"


def list_cached(cache_dir: Path | None = None) -> list[CachedModel]:
    """Return the converted checkpoints, sorted by name."""
    folder = (cache_dir or default_cache_dir()) / "models"
    return [_describe(manifest) for manifest in sorted(folder.glob(f"[!.]*/{MANIFEST}"))]


def remove_cached(cache_dir: Path | None, name: str) -> bool:
    """Delete a converted checkpoint; return False if there is none with this name.

    Engines that have loaded it keep running: the files stay mapped until they are closed.
    """
    root = cache_dir or default_cache_dir()
    for model in list_cached(root):
        if model.name == name:
            with _lock(root, name):
                # Renamed first, so that readers never see a partial checkpoint.
                trash = Path(tempfile.mkdtemp(dir=model.path.parent, prefix=f".partial-{name}-"))
                model.path.rename(trash / name)
                shutil.rmtree(trash)
            return True
    return False


def get_or_convert(cache_dir: Path, name: str, source: str, convert: Callable[[Path], None]) -> Path:
    """Return the folder `name`; if it is missing, call `convert` with an empty folder, which is then renamed
    to it.

    If several processes call it at the same time, one converts and the others wait. An exception of
    `convert` is passed on and leaves no files.
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
    """Return `<slug>-<hash>`: a readable name that is unique to the content."""
    slug = re.sub(r"[^a-z0-9.]+", "-", source.lower()).strip("-.") or "model"
    return f"{slug}-{content_hash[:HASH_DIGITS]}"


def file_hash(cache_dir: Path, path: Path) -> str:
    """Return the SHA-256 of a file. It is stored by path, size and modification time, so that a later start
    does not read the file."""
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


def stored_hash(cache_dir: Path, path: Path) -> str | None:
    """Return the hash that `file_hash` has stored for the unchanged file; None if it has not."""
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
