"""GPTQ: groups of 2, 3, 4 or 8 bit integers with scales and zero points, as AutoGPTQ and GPTQModel write
them.

Source: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, `pack` and `forward`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import DENSE, WeightScheme
from pagefleet.engine.files.schemes.base import Quantization
from pagefleet.engine.files.schemes.unpacking import (
    check_floats,
    check_groups,
    check_matrix,
    check_shape,
    dequantize,
    num_words,
    unpack,
)

_BITS = (2, 3, 4, 8)
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""Format -> what is added to a stored zero point. The first format stores one less than the zero point."""


@dataclass(frozen=True)
class GPTQScheme(WeightScheme):
    """qweight int32 [in * bits / 32, out], packed along the input; qzeros int32 [groups, out * bits / 32],
    packed along the output; scales [groups, out]; g_idx int32 [in], the group of each input feature."""

    bits: int
    group_size: int
    """-1 if all input features are one group."""
    zero_offset: int

    name = "gptq"
    required = ("qweight", "qzeros", "scales")
    optional = ("g_idx",)

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        words, out_features = check_matrix(parts, "qweight", torch.int32).shape
        in_features = words * 32 // self.bits
        num_groups = -(-in_features // self._size(in_features))
        check_floats(parts, "scales")
        check_shape(parts, "scales", num_groups, out_features)
        check_shape(parts, "qzeros", num_groups, num_words(out_features, self.bits))
        if "g_idx" in parts:
            check_groups(parts, "g_idx", in_features, num_groups)
        return out_features, in_features

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        out_features, in_features = self.shape(parts)
        values = unpack(parts["qweight"].t(), self.bits, in_features)
        zeros = unpack(parts["qzeros"], self.bits, out_features).t()
        # A zero point of 0 is stored as the largest number.
        zeros = (zeros + self.zero_offset) & ((1 << self.bits) - 1)
        # Some writers leave g_idx at zero if the groups are consecutive.
        ordered = "g_idx" in parts and bool((parts["g_idx"] > 0).any())
        return dequantize(
            values,
            parts["scales"].t(),
            zeros,
            group_size=self._size(in_features),
            groups=parts["g_idx"] if ordered else None,
        )

    def _size(self, in_features: int) -> int:
        return in_features if self.group_size == -1 else self.group_size


class GPTQ(Quantization):
    """`quant_method` "gptq". `dynamic` gives layers their own bits and group sizes, by regular
    expressions."""

    parameters = (".qzeros", ".scales", ".g_idx")

    def __init__(self, config: Mapping[str, Any]) -> None:
        form = str(config.get("checkpoint_format") or config.get("format") or "gptq")
        if config.get("is_marlin_format"):
            form = "marlin"
        if form not in _ZERO_OFFSETS:
            raise ModelLoadError(
                f"config.json: quantization_config: GPTQ weights in the format {form!r} are not supported; "
                "use a checkpoint in the format 'gptq' or 'gptq_v2'."
            )
        self._zero_offset = _ZERO_OFFSETS[form]
        self._default = self._scheme(config)
        self._dynamic = [
            (re.compile(pattern.removeprefix("+:")), self._scheme({**config, **options}))
            for pattern, options in (config.get("dynamic") or {}).items()
            if not pattern.startswith("-:")
        ]

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        return self._quantised(linear) if f"{linear}.qweight" in stored else DENSE

    def _quantised(self, linear: str) -> GPTQScheme:
        found = (scheme for pattern, scheme in self._dynamic if pattern.match(linear))
        return next(found, self._default)

    def _scheme(self, config: Mapping[str, Any]) -> GPTQScheme:
        bits, group_size = config.get("bits"), config.get("group_size", -1)
        if bits not in _BITS:
            raise ModelLoadError(
                "config.json: quantization_config: bits of GPTQ weights must be 2, 3, 4 or 8, not "
                f"{bits!r}; use a different checkpoint."
            )
        return GPTQScheme(bits, check_group_size(group_size), self._zero_offset)

    def _packing(self, tensor: str) -> Fraction:
        linear, _, part = tensor.rpartition(".")
        return Fraction(32, self._quantised(linear).bits) if part == "qweight" else Fraction(1)


def check_group_size(group_size: Any) -> int:
    """Return the group size of a `quantization_config`. Raise ModelLoadError if it is neither -1 nor
    positive."""
    if not isinstance(group_size, int) or (group_size != -1 and group_size < 1):
        raise ModelLoadError(
            f"config.json: quantization_config: group_size must be -1 or at least 1, not {group_size!r}; "
            "download the file again."
        )
    return group_size
