"""ModelSource: where a model comes from, so that it can be loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.models.decoder import Decoder
from pagefleet.engine.models.registry import load_model


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A folder with weights, what its config.json says, and in what they are to be computed."""

    folder: Path
    config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype

    @torch.inference_mode()
    def load(self) -> Decoder:
        """The decoder with its weights packed. Raises ModelLoadError."""
        return load_model(self.config, WeightReader(self.folder), ReferenceBackend(self.device, self.dtype))
