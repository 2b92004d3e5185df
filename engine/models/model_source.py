"""ModelSource: everything that is needed to load a model, also a second time after sleep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pagefleet.engine.backends.choice import new_backend
from pagefleet.engine.models.model import Model
from pagefleet.engine.models.registry import load_model


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The folder and config.json of a checkpoint, and the device and dtype to load it with."""

    folder: Path
    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    max_model_len: int | None = None
    """The context length that the user wants, in tokens. None: the model's."""
    backend: str = "reference"

    @torch.inference_mode()
    def load(self) -> Model:
        """Load the weights; return the model. Raises ModelLoadError."""
        backend = new_backend(self.backend, self.device, self.dtype)
        return load_model(self.config, self.folder, backend, self.max_model_len)
