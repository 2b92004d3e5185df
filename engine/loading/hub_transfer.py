"""Downloads large files from the hub. A download that was killed continues at the next start.

huggingface_hub begins each file again after a kill. The files are written as blobs of its own cache, so its
other users find them:

<cache>/models--<owner>--<name>/blobs/<etag>                         a complete file
<cache>/models--<owner>--<name>/blobs/<etag>.pagefleet.incomplete    the first bytes of a file
<cache>/models--<owner>--<name>/blobs/.pagefleet.lock                held while weights are downloaded
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from filelock import FileLock, Timeout

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.loading.download_progress import DownloadProgress

__all__ = ["RemoteFile", "fetch_files", "first_line"]

logger = logging.getLogger(__name__)

_NUM_STREAMS: Final = 4
_SHA256_DIGITS: Final = 64
_MAX_HTTP_BYTES: Final = 50 * 10**9
"""The hub serves larger files in a protocol of its own only. huggingface_hub downloads them."""


class RemoteFile(NamedTuple):
    """A file in a repository on the hub."""

    name: str
    size: int
    """Bytes."""
    etag: str
    """The name of its blob in the cache. If it has 64 digits, it is the SHA-256 of the content."""


def fetch_files(hub_id: str, folder: Path, files: Sequence[RemoteFile]) -> None:
    """Download the blobs of `files` that are missing, except those of more than 50 GB.

    Args:
        folder: <cache>/models--<owner>--<name>/snapshots/<commit>.

    Raises ModelLoadError if the disk is too small or the download fails; what is complete or partial is kept.
    """
    blobs = folder.parents[1] / "blobs"
    try:
        with _only_process(hub_id, blobs):
            _fetch_missing(_Repository(hub_id, folder.name, blobs), files)
    except ModelLoadError:
        raise
    # Errors of the disk and of the HTTP client, which differs between versions of huggingface_hub.
    except Exception as error:
        raise ModelLoadError(
            f"{hub_id} was not downloaded completely ({first_line(error)}); start again, and the download "
            "continues."
        ) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def _only_process(hub_id: str, blobs: Path) -> Iterator[None]:
    blobs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(blobs / ".pagefleet.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process, which downloads it", hub_id)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Repository(NamedTuple):
    hub_id: str
    commit: str
    blobs: Path


def _fetch_missing(repository: _Repository, files: Sequence[RemoteFile]) -> None:
    missing = [file for file in files if not (repository.blobs / file.etag).exists()]
    if missing:
        _check_disk(repository, missing)
        with DownloadProgress(repository.hub_id, sum(file.size for file in missing)) as progress:
            _fetch_all(repository, missing, progress)


def _check_disk(repository: _Repository, files: Sequence[RemoteFile]) -> None:
    needed = sum(file.size - _size(_partial(repository.blobs, file)) for file in files)
    free = shutil.disk_usage(repository.blobs).free
    if needed > free:
        cache = repository.blobs.parents[1]
        raise ModelLoadError(
            f"{repository.hub_id} needs {needed / 1e9:.1f} GB more in {cache}, which has {free / 1e9:.1f} GB "
            "free: free disk space, or set HF_HOME to a directory on a larger disk."
        )


def _fetch_all(repository: _Repository, files: Sequence[RemoteFile], progress: DownloadProgress) -> None:
    with ThreadPoolExecutor(_NUM_STREAMS) as executor:
        transfers = [
            executor.submit(_fetch, repository, file, progress)
            for file in files
            if file.size <= _MAX_HTTP_BYTES
        ]
        try:
            for transfer in as_completed(transfers):
                transfer.result()
        except BaseException:
            # Ctrl-C or a failure: the other transfers end at their next chunk.
            progress.cancel()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(repository: _Repository, file: RemoteFile, progress: DownloadProgress) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    partial = _partial(repository.blobs, file)
    if (start := _size(partial)) > file.size:
        partial.unlink()
        start = 0
    with partial.open("ab") as target:
        http_get(
            hf_hub_url(repository.hub_id, file.name, revision=repository.commit),
            target,
            resume_size=start,
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},
            expected_size=file.size,
            displayed_filename=file.name,
            # It needs only a context manager with `update`.
            tqdm_class=cast(Any, progress.meter),
        )
    if start == file.size:
        progress.meter(initial=start)
    if start and not _is_intact(partial, file):
        partial.unlink()
        raise ModelLoadError(
            f"{repository.hub_id}: the continued download of {file.name} does not match its checksum and is "
            "deleted; start again to download the file anew."
        )
    partial.replace(repository.blobs / file.etag)


def _is_intact(path: Path, file: RemoteFile) -> bool:
    """Compare the size and, if it is known, the SHA-256."""
    if path.stat().st_size != file.size:
        return False
    if len(file.etag) != _SHA256_DIGITS:
        return True
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.etag


def _partial(blobs: Path, file: RemoteFile) -> Path:
    return blobs / f"{file.etag}.pagefleet.incomplete"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
