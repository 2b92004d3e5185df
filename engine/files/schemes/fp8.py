"""fp8: float8 matrices with one scale for each block, output feature or matrix.

Sources: DeepSeek-V3, inference/kernel.py, `weight_dequant` (blocks); AutoFP8 (matrices); FBGEMM (output
features).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import DENSE, WeightScheme
from pagefleet.engine.files.schemes.base import Quantization
from pagefleet.engine.files.schemes.unpacking import (
    block_rows,
    check_floats,
    check_matrix,
    check_shape,
    dequantize,
)

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = ("weight_scale_inv", "weight_scale")
"""The tensor of scales. Both multiply the weights; the first is the inverse of the scale that quantised
them."""


@dataclass(frozen=True)
class FP8Scheme(WeightScheme):
    """weight float8 [out, in] and its scales: one, or [out] or [out, 1], or [out / rows, in / columns] of
    blocks, rounded up."""

    required: tuple[str, ...]
    """"weight" and the name of the scales."""
    block: tuple[int, int] | None
    """Rows and columns of a block."""

    name = "fp8"

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        out_features, in_features = check_matrix(parts, "weight", *FLOAT8).shape
        check_floats(parts, self.required[1])
        if not self._has_blocks(parts):
            return out_features, in_features
        rows, columns = self.block or (1, in_features)
        check_shape(parts, self.required[1], -(-out_features // rows), -(-in_features // columns))
        return out_features, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        out_features, _ = self.shape(parts)
        scales = parts[self.required[1]]
        if self.block is None or not self._has_blocks(parts):
            return dequantize(parts["weight"], scales.reshape(-1, 1))
        rows, columns = self.block
        scales = block_rows(scales, rows, out_features)
        return dequantize(parts["weight"], scales, group_size=columns)

    def _has_blocks(self, parts: Mapping[str, torch.Tensor]) -> bool:
        scales, out_features = parts[self.required[1]], len(parts["weight"])
        return scales.numel() != 1 and tuple(scales.shape) not in ((out_features,), (out_features, 1))


class FP8(Quantization):
    """`quant_method` "fp8" (DeepSeek, Qwen, AutoFP8) and "fbgemm_fp8" (Llama 3.1)."""

    parameters = tuple(f".{name}" for name in _SCALES)

    def __init__(self, config: Mapping[str, Any]) -> None:
        block = config.get("weight_block_size")
        if block is not None and not _is_block(block):
            raise ModelLoadError(
                "config.json: quantization_config: weight_block_size must be two positive integers, not "
                f"{block!r}; download the file again."
            )
        self._schemes = {
            name: FP8Scheme(("weight", name), tuple(block) if block else None) for name in _SCALES
        }

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        found = (scheme for name, scheme in self._schemes.items() if f"{linear}.{name}" in stored)
        return next(found, DENSE)


def _is_block(block: Any) -> bool:
    return (
        isinstance(block, list | tuple)
        and len(block) == 2
        and all(isinstance(size, int) and size > 0 for size in block)
    )
