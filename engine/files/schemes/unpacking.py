"""Steps that several formats of quantised weights share: packed integers, scales of groups, shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from pagefleet.engine.errors import ModelLoadError


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the first `count` unsigned numbers of each row of an int32 matrix, uint8 [rows, count].

    Number i has the bits from i * bits to (i + 1) * bits - 1 of the row; bit 0 is the lowest of the first
    word.
    """
    numbers = _unpack_words(packed, bits) if 8 % bits else _unpack_bytes(packed, bits)
    return numbers[:, :count]


def _unpack_bytes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Each byte contains whole numbers, the first in its lowest bits. Words are little-endian."""
    row_bytes = packed.contiguous().view(torch.uint8)
    numbers = torch.empty(*row_bytes.shape, 8 // bits, dtype=torch.uint8)
    for index in range(8 // bits):
        numbers[:, :, index] = (row_bytes >> (index * bits)) & ((1 << bits) - 1)
    return numbers.flatten(1)


def _unpack_words(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """32 numbers are in `bits` words. A number may begin in one word and end in the next."""
    words = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits))
    numbers = torch.empty(words.shape[0], words.shape[1] * 32 // bits, dtype=torch.uint8)
    for index in range(32):
        word, shift = divmod(index * bits, 32)
        # The shift of a negative word fills its upper bits with ones, so they are masked.
        number = (words[:, word::bits] >> shift) & ((1 << min(bits, 32 - shift)) - 1)
        if shift + bits > 32:
            rest = words[:, word + 1 :: bits] & ((1 << (shift + bits - 32)) - 1)
            number = number | (rest << (32 - shift))
        numbers[:, index::32] = number.to(torch.uint8)
    return numbers


def num_words(count: int, bits: int) -> int:
    """Return how many 32-bit words contain `count` numbers."""
    return math.ceil(count * bits / 32)


def dequantize(
    values: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None = None,
    *,
    group_size: int | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (values - zeros) * scales, float32 [out, in].

    Args:
        values: integers or float8 [out, in].
        scales, zeros: a row for each output feature or one for all, a column for each group or one for all.
        group_size: the input features of a group, which are consecutive; None if there is one group.
        groups: the group of each input feature [in], if they are not consecutive.
    """
    dense = values.to(torch.float32, memory_format=torch.contiguous_format)
    if groups is not None:
        consecutive = torch.arange(dense.shape[1]) // (group_size or dense.shape[1])
        groups = None if torch.equal(groups.long(), consecutive) else groups.long()
    if zeros is not None:
        for part, of_part in _grouped(dense, zeros, group_size, groups):
            part -= of_part
    for part, of_part in _grouped(dense, scales, group_size, groups):
        part *= of_part
    return dense


def _grouped(
    dense: torch.Tensor, parameters: torch.Tensor, group_size: int | None, groups: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield views of a matrix with the parameters that are broadcast to them."""
    parameters = parameters.to(torch.float32)
    if group_size is None or parameters.shape[1] == 1:
        yield dense, parameters
    elif groups is not None:
        yield dense, parameters.index_select(1, groups)
    else:
        num_groups = dense.shape[1] // group_size
        whole = num_groups * group_size
        if num_groups > 0:
            yield dense[:, :whole].view(len(dense), num_groups, group_size), parameters[:, :num_groups, None]
        if whole < dense.shape[1]:
            yield dense[:, whole:], parameters[:, num_groups:]


def block_rows(parameters: torch.Tensor, block_size: int, out_features: int) -> torch.Tensor:
    """Repeat each row of `parameters` for the output features of its block; the last block may be partial.

    A single row is for all output features.
    """
    if len(parameters) == 1:
        return parameters
    return parameters.repeat_interleave(block_size, dim=0)[:out_features]


def check_shape(parts: Mapping[str, torch.Tensor], name: str, *expected: int) -> None:
    """Raise ModelLoadError if a stored tensor has another shape than the other tensors demand."""
    if (shape := tuple(parts[name].shape)) != expected:
        raise ModelLoadError(
            f"{name} has the shape {shape}, but the other tensors and quantization_config demand {expected}; "
            "download the model again."
        )


def check_floats(parts: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise ModelLoadError if a stored tensor does not contain floating point numbers."""
    if not parts[name].is_floating_point():
        raise ModelLoadError(
            f"{name} has the dtype {parts[name].dtype}, but scales must be floating point numbers; use a "
            "different checkpoint."
        )


def check_groups(parts: Mapping[str, torch.Tensor], name: str, num_features: int, num_groups: int) -> None:
    """Raise ModelLoadError if a stored tensor does not have a group for each input feature."""
    check_shape(parts, name, num_features)
    if (largest := int(parts[name].max())) >= num_groups:
        raise ModelLoadError(
            f"{name} contains the group {largest}, but there are {num_groups} groups; download the model "
            "again."
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
