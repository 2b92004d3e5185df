"""Family: how the checkpoints of one model family are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.tensor_names import TensorNames

__all__ = ["Family"]


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: from config.json to a ModelSpec, and the names of its tensors."""

    model_types: tuple[str, ...]
    """The values of `model_type` in config.json."""
    architectures: tuple[str, ...]
    """The values of `architectures` in config.json."""
    read: Callable[[ConfigReader], ModelSpec]
    """Makes the description. Raises ModelLoadError if config.json lacks a value or asks for an unsupported
    feature."""
    names: TensorNames = field(default_factory=TensorNames)
    text_config: str = ""
    """The object in config.json that describes the decoder of a multimodal checkpoint, if there is one."""
