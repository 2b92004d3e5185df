"""Writes a safetensors file tensor by tensor, so that no tensor must fit into memory.

Format: https://huggingface.co/docs/safetensors/index#format. The bytes are those of `safetensors.save_file`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["StreamedTensor", "file_bytes", "write_safetensors"]

_NAMES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class StreamedTensor:
    """A tensor whose elements are computed while it is written."""

    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[NDArray[np.float32]]]
    """Return its elements in order, in arrays of any shape."""


def file_bytes(tensors: Mapping[str, StreamedTensor], dtype: str) -> int:
    """Return the bytes that all tensors have in `dtype`."""
    return sum(prod(tensor.shape) for tensor in tensors.values()) * (4 if dtype == "float32" else 2)


def write_safetensors(path: Path, tensors: Mapping[str, StreamedTensor], dtype: str) -> None:
    """Write all tensors in `dtype`: float32, float16 or bfloat16, rounded to the nearest even value."""
    with path.open("wb") as file:
        file.write(_header(tensors, dtype))
        for name in sorted(tensors):
            written = 0
            for chunk in tensors[name].chunks():
                file.write(_encoded(chunk, getattr(torch, dtype)))
                written += chunk.size
            assert written == prod(tensors[name].shape), f"{name}: {written} elements"


def _header(tensors: Mapping[str, StreamedTensor], dtype: str) -> bytes:
    entries: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors):
        end = offset + file_bytes({name: tensors[name]}, dtype)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    content += b" " * (-len(content) % _ALIGNMENT)
    return len(content).to_bytes(8, "little") + content


def _encoded(chunk: NDArray[np.float32], dtype: torch.dtype) -> bytes:
    # numpy has no bfloat16.
    encoded = torch.from_numpy(chunk).to(dtype).contiguous()
    return encoded.view(torch.uint8).numpy().tobytes()
