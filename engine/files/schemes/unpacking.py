"""Steps that several formats of quantised weights share: packed integers, scales of groups, shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pagefleet.engine.errors import ModelLoadError


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first `count` unsigned numbers of each row of an int32 matrix, uint8 [rows, count].

    Number i has the bits from i * bits to (i + 1) * bits - 1 of the row; bit 0 is the lowest of the first
    word.
    """
    period_words = bits // math.gcd(bits, 32)
    period = period_words * 32 // bits
    missing = -packed.shape[1] % period_words
    words = torch.nn.functional.pad(packed, (0, missing)) if missing else packed
    numbers = torch.empty(words.shape[0], words.shape[1] * 32 // bits, dtype=torch.uint8)
    for index in range(period):
        word, shift = divmod(index * bits, 32)
        # The shift of a negative word fills its upper bits with ones, so they are masked.
        number = (words[:, word::period_words] >> shift) & ((1 << min(bits, 32 - shift)) - 1)
        if shift + bits > 32:
            rest = words[:, word + 1 :: period_words] & ((1 << (shift + bits - 32)) - 1)
            number = number | (rest << (32 - shift))
        numbers[:, index::period] = number.to(torch.uint8)
    return numbers[:, :count]


def num_words(count: int, bits: int) -> int:
    """Return how many 32-bit words contain `count` numbers."""
    return math.ceil(count * bits / 32)


def column_groups(in_features: int, group_size: int) -> torch.Tensor:
    """Return the group of each input feature, int64 [in], for groups of consecutive features."""
    return torch.arange(in_features) // group_size


def dequantize(
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (values - zeros) * scales, float32 [out, in].

    Args:
        values: integers or float8 [out, in].
        scales, zeros: a row for each output feature or one for all, a column for each group or one for all.
        groups: the group of each input feature, int64 [in]; None if there is one group.
    """
    dense = values.to(torch.float32)
    if zeros is not None:
        dense -= _of_columns(zeros, groups)
    return dense.mul_(_of_columns(scales, groups))


def _of_columns(parameters: torch.Tensor, groups: torch.Tensor | None) -> torch.Tensor:
    parameters = parameters.to(torch.float32)
    return parameters if groups is None or parameters.shape[1] == 1 else parameters[:, groups]


def block_rows(parameters: torch.Tensor, block_size: int, out_features: int) -> torch.Tensor:
    """Repeat each row of `parameters` for the output features of its block; the last block may be partial.

    A single row is for all output features.
    """
    return (
        parameters if len(parameters) == 1 else parameters.repeat_interleave(block_size, dim=0)[:out_features]
    )


def check_shape(parts: Mapping[str, torch.Tensor], name: str, *expected: int) -> None:
    """Raise ModelLoadError if a stored tensor has another shape than the other tensors demand."""
    if (shape := tuple(parts[name].shape)) != expected:
        raise ModelLoadError(
            f"{name} has the shape {shape}, but the other tensors and quantization_config demand {expected}; "
            "download the model again."
        )


def check_matrix(parts: Mapping[str, torch.Tensor], name: str, *dtypes: torch.dtype) -> torch.Tensor:
    """Return a stored matrix. Raise ModelLoadError if it has another number of dimensions or dtype."""
    tensor = parts[name]
    if tensor.ndim != 2 or tensor.dtype not in dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ModelLoadError(
            f"{name} has the shape {tuple(tensor.shape)} and the dtype "
            f"{str(tensor.dtype).removeprefix('torch.')}, but the format needs a matrix of {names}; "
            "download the model again."
        )
    return tensor
