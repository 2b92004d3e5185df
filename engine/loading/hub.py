"""Downloads models from the Hugging Face hub.

config.json is downloaded first, so that a model that the engine cannot run is rejected before its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pagefleet.engine.errors import ModelLoadError, UnknownModelError
from pagefleet.engine.files.weight_files import WEIGHT_FILE, WEIGHT_INDEX, indexed_paths

__all__ = ["download", "find_downloaded"]

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def download(hub_id: str, check: Callable[[Path], None]) -> Path:
    """Return the folder with the model's files, downloading those that are missing.

    Without network, or with HF_HUB_OFFLINE set, only files that were downloaded before are used.

    Args:
        check: called with a folder that contains config.json before weights are downloaded; it raises if the
            engine cannot run the model.

    Raises UnknownModelError if the model cannot be downloaded.
    """
    folder = _snapshot(hub_id, ["config.json", WEIGHT_INDEX])
    check(folder)
    return _snapshot(hub_id, [*_SMALL_FILES, *_needed_weights(hub_id, folder)])


def find_downloaded(hub_id: str) -> Path:
    """Return the folder of a model that was downloaded before. Raises UnknownModelError if it was not."""
    return _snapshot(hub_id, _SMALL_FILES, local_files_only=True)


def _snapshot(hub_id: str, patterns: Sequence[str], *, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=list(patterns), local_files_only=local_files_only)
        )
    except LocalEntryNotFoundError as error:
        raise UnknownModelError(
            f"{hub_id} has not been downloaded, and the hub cannot be reached: check the network and "
            "HF_HUB_OFFLINE."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UnknownModelError(f"{hub_id} cannot be downloaded from the hub: {error}") from error


def _needed_weights(hub_id: str, folder: Path) -> list[str]:
    """Return the names of the files that `weight_paths` will choose, since many models contain other
    copies."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        found = snapshot_download(hub_id, allow_patterns=["*.safetensors"], dry_run=True)
    except DryRunError:
        # The hub cannot be reached: use the files that were downloaded before.
        return []
    names = [each.filename for each in found if "/" not in each.filename]
    if WEIGHT_FILE in names:
        return [WEIGHT_FILE]
    if (folder / WEIGHT_INDEX).is_file():
        return [path.name for path in indexed_paths(folder / WEIGHT_INDEX)]
    if len(names) > 1:
        raise ModelLoadError(
            f"{hub_id} has several weight files ({', '.join(names)}) but no {WEIGHT_INDEX}; use a different "
            "model."
        )
    return names
