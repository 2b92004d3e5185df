"""compressed-tensors: int8, float8 and packed integer weights, as llm-compressor writes them.

Sources: compressed-tensors 0.20, compressors/pack_quantized, compressors/naive_quantized and
quantization/lifecycle/forward_helpers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pagefleet.engine.files.linear_weights import WeightScheme
from pagefleet.engine.files.schemes.fp8 import FLOAT8
from pagefleet.engine.files.schemes.unpacking import (
    block_rows,
    check_floats,
    check_groups,
    check_matrix,
    check_shape,
    dequantize,
    num_words,
    unpack,
)


@dataclass(frozen=True)
class Granularity:
    """The weights that share a scale: `rows` output features times `columns` input features; None: all."""

    rows: int | None
    columns: int | None

    def grid(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Return the shape of the scales of a matrix, whose last blocks may be partial."""
        return -(-out_features // (self.rows or out_features)), -(
            -in_features // (self.columns or in_features)
        )

    def dequantize(
        self,
        values: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        groups: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the matrix, float32 [out, in]. `groups` are those of input features that are not
        consecutive."""
        out_features = len(values)
        if self.rows is not None and self.rows > 1:
            scales = block_rows(scales, self.rows, out_features)
            zeros = None if zeros is None else block_rows(zeros, self.rows, out_features)
        return dequantize(values, scales, zeros, group_size=self.columns, groups=groups)


@dataclass(frozen=True)
class PlainScheme(WeightScheme):
    """weight int8 or float8 [out, in]; weight_scale and weight_zero_point [blocks of rows, blocks of
    columns].

    The formats int-quantized, float-quantized and naive-quantized. Scales of activations are ignored.
    """

    granularity: Granularity

    name = "compressed-tensors"
    required = ("weight", "weight_scale")
    optional = ("weight_zero_point",)

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        out_features, in_features = check_matrix(parts, "weight", torch.int8, *FLOAT8).shape
        _check_grids(parts, self.granularity.grid(out_features, in_features))
        return out_features, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        grid = self.granularity.grid(*self.shape(parts))
        zeros = parts.get("weight_zero_point")
        return self.granularity.dequantize(
            parts["weight"],
            parts["weight_scale"].view(grid),
            None if zeros is None else zeros.view(grid),
            None,
        )


@dataclass(frozen=True)
class PackedScheme(WeightScheme):
    """weight_packed int32 [out, in * bits / 32], packed along the input; weight_scale [out, groups];
    weight_zero_point int32 [out * bits / 32, groups], packed along the output, or int8; weight_shape [2];
    weight_g_idx int32 [in], the group of each input feature. The format pack-quantized.
    """

    bits: int
    granularity: Granularity

    name = "compressed-tensors"
    required = ("weight_packed", "weight_scale", "weight_shape")
    optional = ("weight_zero_point", "weight_g_idx")

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        check_shape(parts, "weight_shape", 2)
        out_features, in_features = (int(size) for size in parts["weight_shape"])
        check_matrix(parts, "weight_packed", torch.int32)
        check_shape(parts, "weight_packed", out_features, num_words(in_features, self.bits))
        rows, columns = self.granularity.grid(out_features, in_features)
        _check_grids({"weight_scale": parts["weight_scale"]}, (rows, columns))
        if "weight_zero_point" in parts:
            packed = parts["weight_zero_point"].dtype == torch.int32
            check_shape(parts, "weight_zero_point", num_words(rows, self.bits) if packed else rows, columns)
        if "weight_g_idx" in parts:
            check_groups(parts, "weight_g_idx", in_features, columns)
        return out_features, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        out_features, in_features = self.shape(parts)
        grid = self.granularity.grid(out_features, in_features)
        values = unpack(parts["weight_packed"], self.bits, in_features)
        zeros = self._zeros(parts, grid[0])
        groups = parts.get("weight_g_idx")
        if groups is not None:
            # The library writes -1 if the groups are consecutive.
            groups = None if bool((groups < 0).any()) else groups.long()
        return self.granularity.dequantize(values, parts["weight_scale"].view(grid), zeros, groups)

    def _zeros(self, parts: Mapping[str, torch.Tensor], num_rows: int) -> torch.Tensor:
        """Return zero points with the offset that packed weights have too."""
        offset = 1 << (self.bits - 1)
        zeros = parts.get("weight_zero_point")
        if zeros is None:
            return torch.tensor([[offset]])
        if zeros.dtype == torch.int32:
            return unpack(zeros.t(), self.bits, num_rows).t()
        # Versions before 0.10 store them as int8, without the offset.
        return zeros.to(torch.int32) + offset


def _check_grids(parts: Mapping[str, torch.Tensor], grid: tuple[int, int]) -> None:
    """Raise ModelLoadError if scales or zero points do not fit the matrix. One-dimensional ones may be
    [rows]."""
    check_floats(parts, "weight_scale")
    for name in ("weight_scale", "weight_zero_point"):
        if name not in parts:
            continue
        if parts[name].ndim < 2 and grid[1] == 1 and parts[name].numel() == grid[0]:
            continue
        check_shape(parts, name, *grid)
