"""The memory that a checkpoint needs, from its config.json and the sizes of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagefleet.engine.files.json_file import read_json_object
from pagefleet.engine.files.weight_files import weight_paths

_DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The memory that a model needs in a dtype, in bytes. Packing the weights temporarily needs as much
    again."""

    weight_bytes: int
    kv_bytes_per_token: int
    """Of the layers that attend to all tokens; of all layers if each has a window."""
    max_model_len: int


def model_size(folder: Path, dtype: str = "auto") -> ModelSize:
    """Return the size of the model in `folder`, which contains config.json and *.safetensors.

    Raises ModelLoadError, OSError, ValueError or KeyError if they cannot be used.
    """
    # Imports torch.
    from pagefleet.engine.models.registry import read_spec

    config = read_json_object(folder / "config.json")
    spec = read_spec(config)
    stored = str(spec.dtype).removeprefix("torch.")
    num_bytes = _DTYPE_BYTES[stored if dtype == "auto" else dtype]
    # A layer with a window keeps the tokens of its window only.
    growing = [layer.attention for layer in spec.layers if layer.attention.window is None]
    attentions = growing or [layer.attention for layer in spec.layers]
    return ModelSize(
        weight_bytes=_weight_bytes(folder, config, num_bytes, _DTYPE_BYTES[stored]),
        kv_bytes_per_token=sum(each.num_elements for each in attentions) * num_bytes,
        max_model_len=spec.max_model_len,
    )


def _weight_bytes(folder: Path, config: Mapping[str, Any], num_bytes: int, stored_bytes: int) -> int:
    """Return the size of the weights with `num_bytes` for each element. Quantised ones are dequantised."""
    paths = weight_paths(folder)
    if config.get("quantization_config") is None and config.get("compression_config") is None:
        return sum(path.stat().st_size for path in paths) * num_bytes // stored_bytes
    # Imports torch.
    from pagefleet.engine.files.schemes.registry import quantization_config, read_quantization

    quantization = read_quantization(quantization_config(config))
    shapes = (item for path in paths for item in _shapes(path).items())
    return num_bytes * sum(quantization.num_dense(name, shape) for name, shape in shapes)


def _shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file, by their names."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
