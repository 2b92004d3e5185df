"""AWQ: groups of 4 bit integers with scales and zero points, in the layout of AutoAWQ's GEMM kernel.

Source: AutoAWQ, awq/modules/linear/gemm.py, `from_linear`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import DENSE, WeightScheme
from pagefleet.engine.files.schemes.base import Quantization
from pagefleet.engine.files.schemes.gptq import check_group_size
from pagefleet.engine.files.schemes.unpacking import (
    check_floats,
    check_matrix,
    check_shape,
    dequantize,
)

_BITS = 4
_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output feature of a word -> its place: places 0 to 7 contain the features 0, 2, 4, 6, 1, 3, 5, 7."""


@dataclass(frozen=True)
class AWQScheme(WeightScheme):
    """qweight int32 [in, out / 8] and qzeros int32 [groups, out / 8], both packed along the output and
    interleaved; scales [groups, out]."""

    group_size: int
    """-1 if all input features are one group."""

    name = "awq"
    required = ("qweight", "qzeros", "scales")

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        in_features, words = check_matrix(parts, "qweight", torch.int32).shape
        num_groups = -(-in_features // self._size(in_features))
        check_shape(parts, "qzeros", num_groups, words)
        check_floats(parts, "scales")
        check_shape(parts, "scales", num_groups, words * _PER_WORD)
        return words * _PER_WORD, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        _, in_features = self.shape(parts)
        values, zeros = _unpack(parts["qweight"]), _unpack(parts["qzeros"])
        return dequantize(values, parts["scales"].t(), zeros, group_size=self._size(in_features))

    def _size(self, in_features: int) -> int:
        return in_features if self.group_size == -1 else self.group_size


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """Return uint8 [out, rows] of an int32 matrix [rows, out / 8]."""
    words = packed.t().contiguous()
    numbers = torch.empty(len(words), _PER_WORD, len(packed), dtype=torch.uint8)
    for feature, place in enumerate(_PLACES):
        numbers[:, feature] = (words >> (place * _BITS)) & ((1 << _BITS) - 1)
    return numbers.flatten(0, 1)


class AWQ(Quantization):
    """`quant_method` "awq"."""

    parameters = (".qzeros", ".scales")

    def __init__(self, config: Mapping[str, Any]) -> None:
        version = str(
            config.get("version") or config.get("format") or config.get("checkpoint_format") or "gemm"
        )
        bits = config.get("bits", config.get("w_bit", _BITS))
        if version.lower() != "gemm" or bits != _BITS:
            raise ModelLoadError(
                f"config.json: quantization_config: AWQ weights with version {version!r} and {bits} bits "
                "are not supported; use a checkpoint with version 'gemm' and 4 bits."
            )
        self._scheme = AWQScheme(check_group_size(config.get("group_size", config.get("q_group_size", 128))))

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        return self._scheme if f"{linear}.qweight" in stored else DENSE

    def _packing(self, tensor: str) -> Fraction:
        return Fraction(_PER_WORD if tensor.endswith(".qweight") else 1)
