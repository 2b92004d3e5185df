"""Reading safetensors checkpoints, and telling two of them apart. Knows no model and no backend.

Files are memory-mapped: a tensor's bytes are read from disk when a backend packs them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.weight_files import weight_paths

logger = logging.getLogger(__name__)

_NUM_NAMED = 3


class WeightReader:
    """The tensors of a folder's *.safetensors files by name; remembers which were taken.

    Raises ModelLoadError if the folder has no such file or a shard of its index is missing.
    """

    def __init__(self, folder: Path) -> None:
        paths = weight_paths(folder)
        if ignored := [path.name for path in sorted(folder.glob("*.safetensors")) if path not in paths]:
            logger.warning("%s: not read: %s; the model is in %s", folder, ", ".join(ignored), paths[0].name)
        files = [_open(path) for path in paths]
        self._owners: dict[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self._untaken = set(self._owners)

    def __contains__(self, name: str) -> bool:
        return name in self._owners

    def assert_complete(self, required: Iterable[str]) -> None:
        """Raises ModelLoadError that names the tensors that are missing."""
        if missing := [name for name in required if name not in self._owners]:
            raise ModelLoadError(
                f"The checkpoint has no {', '.join(missing[:_NUM_NAMED])}"
                f"{' and more' if len(missing) > _NUM_NAMED else ''} ({len(missing)} tensors are missing); "
                "fetch the model again."
            )

    def take(self, name: str) -> torch.Tensor:
        """The tensor of that name, on the CPU, in the dtype it is stored in; ModelLoadError if missing."""
        tensor = self.take_optional(name)
        if tensor is None:
            raise ModelLoadError(f"The checkpoint has no tensor {name!r}; is it complete?")
        return tensor

    def take_optional(self, name: str) -> torch.Tensor | None:
        if name not in self._owners:
            return None
        self._untaken.discard(name)
        tensor: torch.Tensor = self._owners[name].get_tensor(name)
        return tensor

    def assert_all_taken(self) -> None:
        """Raises ModelLoadError for tensors that nobody asked for: a part would be left out."""
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        left = sorted(name for name in self._untaken if not name.endswith("rotary_emb.inv_freq"))
        if left:
            raise ModelLoadError(
                f"The checkpoint has {len(left)} tensors that this architecture does not use, such as "
                f"{left[0]!r}; "
                "the model has a feature that is not supported."
            )


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as safetensors ({error}); fetch the model again."
        ) from error
