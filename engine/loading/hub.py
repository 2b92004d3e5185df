"""Models of the Hugging Face hub: what is fetched of them, and in which order.

config.json comes first: a model that the engine cannot run is refused before its weights are fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pagefleet.engine.errors import ModelLoadError, UnknownModelError
from pagefleet.engine.files.weight_files import WEIGHT_FILE, WEIGHT_INDEX, indexed_paths

__all__ = ["fetch", "fetched_before"]

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")


def fetch(hub_id: str, check: Callable[[Path], None]) -> Path:
    """Return the folder of the files; without network, or with HF_HUB_OFFLINE, of those fetched before.

    Args:
        check: called with a folder that holds config.json; what it raises is passed on, and no weights
            are fetched.

    Raises UnknownModelError for a model that cannot be fetched.
    """
    folder = _snapshot(hub_id, ["config.json", WEIGHT_INDEX])
    check(folder)
    return _snapshot(hub_id, [*_SMALL_FILES, *_needed_weights(hub_id, folder)])


def fetched_before(hub_id: str) -> Path:
    """Return the folder of a model that was fetched before. Raises UnknownModelError for any other."""
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
            f"{hub_id} has not been fetched before, and the hub cannot be reached (or HF_HUB_OFFLINE is set)."
        ) from error
    except (HfHubHTTPError, HFValidationError) as error:
        raise UnknownModelError(f"{hub_id} cannot be fetched from the hub: {error}") from error


def _needed_weights(hub_id: str, folder: Path) -> list[str]:
    """The files that `weight_paths` will choose: many models have others beside them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        found = snapshot_download(hub_id, allow_patterns=["*.safetensors"], dry_run=True)
    except DryRunError:
        # The hub cannot be reached: what was fetched before must do.
        return []
    names = [each.filename for each in found if "/" not in each.filename]
    if WEIGHT_FILE in names:
        return [WEIGHT_FILE]
    if (folder / WEIGHT_INDEX).is_file():
        return [path.name for path in indexed_paths(folder / WEIGHT_INDEX)]
    if len(names) > 1:
        raise ModelLoadError(f"{hub_id} has several weight files and no {WEIGHT_INDEX}: {', '.join(names)}.")
    return names
