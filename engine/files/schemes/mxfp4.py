"""MXFP4: 4 bit floating point numbers with one power of two for each 32 of a row, as gpt-oss stores its
experts.

Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 (E2M1) and 5.4 (E8M0).
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from fractions import Fraction

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import DENSE, WeightScheme
from pagefleet.engine.files.schemes.base import Quantization
from pagefleet.engine.files.schemes.unpacking import check_shape

_BLOCK = 32
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The value of each 4 bit code: sign, two bits of exponent, one of mantissa."""


class MXFP4Scheme(WeightScheme):
    """blocks uint8 [out, in / 32, 16], two numbers a byte, the first in the lower half; scales uint8
    [out, in / 32], exponents with bias 127."""

    name = "mxfp4"
    required = ("blocks", "scales")

    def shape(self, parts: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        blocks = parts["blocks"]
        if blocks.ndim != 3 or blocks.dtype != torch.uint8 or parts["scales"].dtype != torch.uint8:
            raise ModelLoadError(
                f"MXFP4 blocks have the shape {tuple(blocks.shape)} and the dtype {blocks.dtype}, but must "
                "be uint8 [out, in / 32, 16]; download the model again."
            )
        out_features, num_blocks, _ = blocks.shape
        check_shape(parts, "blocks", out_features, num_blocks, _BLOCK // 2)
        check_shape(parts, "scales", out_features, num_blocks)
        return out_features, num_blocks * _BLOCK

    def dense(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        out_features, in_features = self.shape(parts)
        blocks = parts["blocks"]
        pairs = torch.tensor([(_E2M1[byte & 15], _E2M1[byte >> 4]) for byte in range(256)])
        dense = torch.nn.functional.embedding(blocks.int(), pairs).flatten(2)
        scales = parts["scales"].contiguous().view(torch.float8_e8m0fnu).to(torch.float32)
        return dense.mul_(scales.unsqueeze(-1)).view(out_features, in_features)


MXFP4_SCHEME = MXFP4Scheme()


class MXFP4(Quantization):
    """`quant_method` "mxfp4": the experts only. Linear layers are dense."""

    parameters = ("_scales",)

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        return DENSE

    def _packing(self, tensor: str) -> Fraction:
        return Fraction(2 if tensor.endswith("_blocks") else 1)
