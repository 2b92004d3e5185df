"""Downloads models from the Hugging Face hub.

config.json is downloaded first, so that a model that the engine cannot run is rejected before its weights.
Weights are downloaded by hub_transfer.py, into the hub's own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from pagefleet.engine.errors import ModelLoadError, UnknownModelError
from pagefleet.engine.files.weight_files import WEIGHT_FILE, WEIGHT_INDEX, indexed_paths, weight_paths
from pagefleet.engine.loading.hub_transfer import RemoteFile, fetch_files, first_line

__all__ = ["download", "find_downloaded"]

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def download(hub_id: str, check: Callable[[Path], None], revision: str | None = None) -> Path:
    """Return the folder with the model's files, downloading those that are missing.

    Without network, or with HF_HUB_OFFLINE set, only files that were downloaded before are used.

    Args:
        check: called with a folder that contains config.json before weights are downloaded; it raises if the
            engine cannot run the model.
        revision: a branch, tag or commit. None: the default branch.

    Raises UnknownModelError if the model or the revision cannot be found, ModelLoadError if the disk is too
    small or the download fails.
    """
    folder = _snapshot(hub_id, revision, ["config.json", WEIGHT_INDEX])
    check(folder)
    # The folder is named after the commit, which is used from here on: a branch can move.
    commit = folder.name
    weights: list[str] = []
    if not _has_weights(folder):
        files = _needed_weights(hub_id, folder)
        fetch_files(hub_id, folder, files)
        weights = [file.name for file in files]
    return _snapshot(hub_id, commit, [*_SMALL_FILES, *weights])


def find_downloaded(hub_id: str, revision: str | None = None) -> Path:
    """Return the folder of a model that was downloaded before. Raises UnknownModelError if it was not."""
    folder = _snapshot(hub_id, revision, _SMALL_FILES, local_files_only=True)
    if not _has_weights(folder):
        raise UnknownModelError(_not_downloaded(hub_id))
    return folder


def _not_downloaded(hub_id: str) -> str:
    return f"{hub_id} has not been downloaded, or not completely."


def _has_weights(folder: Path) -> bool:
    try:
        weight_paths(folder)
    except ModelLoadError:
        return False
    return True


def _snapshot(
    hub_id: str, revision: str | None, patterns: Sequence[str], *, local_files_only: bool = False
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
                tqdm_class=_no_bar(),
            )
        )
    except LocalEntryNotFoundError as error:
        if local_files_only:
            raise UnknownModelError(_not_downloaded(hub_id)) from error
        raise UnknownModelError(
            f"{hub_id} has not been downloaded, and the hub cannot be reached: check the network and "
            "HF_HUB_OFFLINE."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UnknownModelError(_refusal(hub_id, revision, error)) from error
    # Errors of the disk and of the HTTP client, which differs between versions of huggingface_hub.
    except Exception as error:
        raise ModelLoadError(
            f"{hub_id} cannot be downloaded to {_cache()} ({first_line(error)}): set HF_HOME to a directory "
            "that this user can write to, and check the network."
        ) from error


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _no_bar() -> Any:
    """Return a class of progress bars that are not shown: hub_transfer.py shows the progress of weights."""
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            cast(Any, super()).__init__(*args, **{**options, "disable": True})

    return NoBar


def _refusal(hub_id: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{hub_id} is gated: accept its terms on its page on the hub, and set HF_TOKEN."
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub_id} is not on the hub, or it is private: check the name, or set HF_TOKEN."
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision!r}: give a branch, tag or commit of its repository."
    return f"{hub_id} cannot be downloaded from the hub: {first_line(error)}"


def _needed_weights(hub_id: str, folder: Path) -> list[RemoteFile]:
    """Return the files that `weight_paths` will choose, since many models contain other copies."""
    found = {file.name: file for file in _list_weights(hub_id, folder.name)}
    if WEIGHT_FILE in found:
        return [found[WEIGHT_FILE]]
    if (folder / WEIGHT_INDEX).is_file():
        names = [path.name for path in indexed_paths(folder / WEIGHT_INDEX)]
        if missing := [name for name in names if name not in found]:
            raise ModelLoadError(
                f"{hub_id} has no {', '.join(missing)}, which its {WEIGHT_INDEX} lists; use a different "
                "model."
            )
        return [found[name] for name in names]
    if len(found) > 1:
        raise ModelLoadError(
            f"{hub_id} has several weight files ({', '.join(found)}) but no {WEIGHT_INDEX}; use a different "
            "model."
        )
    return list(found.values())


def _list_weights(hub_id: str, commit: str) -> list[RemoteFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        entries = list(HfApi().list_repo_tree(hub_id, revision=commit))
    # Errors of the HTTP client, which differs between versions of huggingface_hub.
    except Exception as error:
        raise UnknownModelError(
            f"{hub_id} has not been downloaded completely, and the hub cannot be reached: check the network "
            "and HF_HUB_OFFLINE."
        ) from error
    return [
        RemoteFile(each.path, each.size, each.blob_id if each.lfs is None else each.lfs.sha256)
        for each in entries
        if isinstance(each, RepoFile) and each.path.endswith(".safetensors")
    ]
