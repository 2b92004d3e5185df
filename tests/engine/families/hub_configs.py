"""The config.json files of checkpoints on the hub: older names, and values left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from pagefleet.engine.models.registry import read_spec

__all__ = ["assert_read_as_by_transformers"]


def assert_read_as_by_transformers(config_class: Any, architecture: str, config: Mapping[str, Any]) -> None:
    """Assert that config.json gives the same model as what transformers' config class makes of it, which has
    all values and their present names."""
    written = {"architectures": [architecture], "model_type": config_class.model_type, **config}
    complete = config_class.from_dict(written).to_dict()
    assert len(complete) > len(written)
    found = read_spec(written)
    assert _plain(found) == _plain(read_spec(complete | {"architectures": [architecture]}))


def _plain(value: Any) -> Any:
    """Return the value with dataclasses as dicts and tensors as lists, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
