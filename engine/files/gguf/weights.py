"""Reads the weights of GGUF files in slices and dequantises them, with gguf-py's implementation of each type.

Files are read, not mapped: the pages of a mapped file would count as memory of the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.gguf.header import GGUFTensor

__all__ = ["check_gguf_tensors", "read_rows"]


def check_gguf_tensors(tensors: Iterable[GGUFTensor]) -> None:
    """Raise ModelLoadError if a tensor has a type that cannot be dequantised, or exceeds its file."""
    known: set[int] = set()
    for tensor in tensors:
        if tensor.kind not in known:
            _check_kind(tensor)
            known.add(tensor.kind)
        end = tensor.offset + prod(tensor.shape[:-1]) * _row_bytes(tensor)
        if end > (size := tensor.path.stat().st_size):
            raise ModelLoadError(
                f"{tensor.path} is truncated: tensor {tensor.name!r} ends at byte {end}, but the file has "
                f"{size} bytes; download it again."
            )


def read_rows(tensor: GGUFTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Return rows `start` to `stop` of a tensor as float32 [stop - start, columns].

    All dimensions but the last count as rows, so a vector has one row. Raises ModelLoadError if the file
    has become shorter.
    """
    row_bytes = _row_bytes(tensor)
    count = (stop - start) * row_bytes
    raw = np.fromfile(tensor.path, np.uint8, count, offset=tensor.offset + start * row_bytes)
    if raw.size < count:
        raise ModelLoadError(f"{tensor.path} is truncated; download it again.")
    rows: NDArray[np.float32] = dequantize(
        raw.reshape(stop - start, row_bytes), GGMLQuantizationType(tensor.kind)
    )
    return rows


def _check_kind(tensor: GGUFTensor) -> None:
    try:
        kind = GGMLQuantizationType(tensor.kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, NotImplementedError) as error:
        found = {each.value: each.name for each in GGMLQuantizationType}.get(tensor.kind, tensor.kind)
        raise ModelLoadError(
            f"{tensor.path}: tensor {tensor.name!r} has the type {found}, which cannot be dequantised; use a "
            "file with a different quantisation."
        ) from error


def _row_bytes(tensor: GGUFTensor) -> int:
    block_size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    columns = tensor.shape[-1] if tensor.shape else 1
    if columns % block_size:
        raise ModelLoadError(
            f"{tensor.path}: tensor {tensor.name!r} has rows of {columns} elements, which are not "
            f"whole blocks of {block_size}; download the file again."
        )
    num_bytes: int = columns // block_size * block_bytes
    return num_bytes
