"""The memory that a checkpoint needs, from its config.json and the sizes of its files."""

from __future__ import annotations

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
    max_model_len: int


def model_size(folder: Path, dtype: str = "auto") -> ModelSize:
    """Return the size of the model in `folder`, which contains config.json and *.safetensors.

    Raises ModelLoadError, OSError, ValueError or KeyError if they cannot be used.
    """
    config = read_json_object(folder / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    num_bytes = _DTYPE_BYTES[stored if dtype == "auto" else dtype]
    on_disk = sum(path.stat().st_size for path in weight_paths(folder))
    return ModelSize(
        weight_bytes=on_disk * num_bytes // _DTYPE_BYTES[stored],
        kv_bytes_per_token=_kv_elements(config) * num_bytes,
        max_model_len=int(config["max_position_embeddings"]),
    )


def _kv_elements(config: Mapping[str, Any]) -> int:
    """Return the elements of one token in the KV cache: a key and a value in each layer and KV head."""
    num_heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // num_heads)
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    return 2 * int(config["num_hidden_layers"]) * num_kv_heads * head_dim
