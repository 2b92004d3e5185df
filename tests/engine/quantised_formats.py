"""Writers of quantised linear layers in numpy, from the definitions of the formats, number by number.

Each writer returns the stored tensors of a random layer and its float32 matrix [out, in]. They do not use the
engine's code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Layer = tuple[dict[str, torch.Tensor], np.ndarray]


@dataclass(frozen=True)
class Format:
    """A `quantization_config`, and the writer of a layer [out, in] in this format."""

    config: dict[str, Any]
    write: Callable[[np.random.Generator, int, int], Layer]
    shape: tuple[int, int]
    """A shape with an incomplete last group, word or block, if the format has them."""


def random_integers(rng: np.random.Generator, limit: int, *shape: int) -> np.ndarray:
    return rng.integers(0, limit, shape, dtype=np.int64)


def random_scales(rng: np.random.Generator, largest: float, *shape: int) -> np.ndarray:
    """Scales for values up to `largest`. float16 stores them exactly: the expected matrix is rounded once."""
    return (rng.uniform(0.3, 0.9, shape) / largest).astype(np.float16).astype(np.float32)


def words(values: np.ndarray) -> torch.Tensor:
    """The int32 tensor with these unsigned words."""
    return torch.from_numpy(values.astype(np.uint32).view(np.int32))


def matrix(values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """(value - zero) * scale in float32; values [out, in], zeros and scales [out, groups]."""
    result = np.empty(values.shape, np.float32)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            group = group_of[column]
            difference = np.float32(values[row, column] - zeros[row, group])
            result[row, column] = difference * np.float32(scales[row, group])
    return result


# -- GPTQ: auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py, pack() --------------------------------------


def pack_gptq(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack the first axis as AutoGPTQ packs the rows of qweight."""
    packed = np.zeros((numbers.shape[0] // 32 * bits, numbers.shape[1]), np.uint64)
    source, row = 0, 0
    while row < packed.shape[0]:
        if bits != 3:
            for j in range(32 // bits):
                packed[row] |= (numbers[source + j] << (bits * j)).astype(np.uint64)
            source, row = source + 32 // bits, row + 1
            continue
        for j in range(10):
            packed[row] |= (numbers[source + j] << (3 * j)).astype(np.uint64)
        packed[row] |= ((numbers[source + 10] << 30) & 0xFFFFFFFF).astype(np.uint64)
        packed[row + 1] |= ((numbers[source + 10] >> 2) & 1).astype(np.uint64)
        for j in range(10):
            packed[row + 1] |= (numbers[source + 11 + j] << (3 * j + 1)).astype(np.uint64)
        packed[row + 1] |= ((numbers[source + 21] << 31) & 0xFFFFFFFF).astype(np.uint64)
        packed[row + 2] |= ((numbers[source + 21] >> 1) & 3).astype(np.uint64)
        for j in range(10):
            packed[row + 2] |= (numbers[source + 22 + j] << (3 * j + 2)).astype(np.uint64)
        source, row = source + 32, row + 3
    return packed


def gptq(bits: int, group_size: int, act_order: bool, zero_offset: int) -> Callable[..., Layer]:
    def write(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
        size = num_in if group_size == -1 else group_size
        group_of = np.array([column // size for column in range(num_in)])
        if act_order:
            group_of = rng.permutation(group_of)
        num_groups = int(group_of.max()) + 1
        values = random_integers(rng, 2**bits, num_in, num_out)
        # A zero point of 0 is stored as -1, which the first format cuts to the largest number.
        zeros = random_integers(rng, 2**bits, num_groups, num_out)
        scales = random_scales(rng, 2**bits, num_groups, num_out)
        stored_zeros = (zeros - zero_offset) % 2**bits
        parts = {
            "qweight": words(pack_gptq(values, bits)),
            "qzeros": words(np.ascontiguousarray(pack_gptq(stored_zeros.T, bits).T)),
            "scales": torch.from_numpy(scales).half(),
            "g_idx": torch.from_numpy(group_of).int(),
        }
        return parts, matrix(values.T, zeros.T, scales.T, group_of)

    return write


def gptq_format(bits: int, group_size: int, act_order: bool = False, **options: Any) -> Format:
    offset = 0 if options.get("checkpoint_format") == "gptq_v2" else 1
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": act_order,
        "sym": False,
    }
    return Format(config | options, gptq(bits, group_size, act_order, offset), (64, 96))


# -- AWQ: awq/modules/linear/gemm.py, from_linear() ------------------------------------------------------


def awq(group_size: int) -> Callable[..., Layer]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(numbers: np.ndarray) -> torch.Tensor:
        packed = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint64)
        for row in range(packed.shape[0]):
            for word in range(packed.shape[1]):
                for place in range(8):
                    packed[row, word] |= np.uint64(numbers[row, word * 8 + order[place]] << (4 * place))
        return words(packed)

    def write(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
        size = num_in if group_size == -1 else group_size
        values = random_integers(rng, 16, num_in, num_out)
        zeros = random_integers(rng, 16, num_in // size, num_out)
        scales = random_scales(rng, 16, num_in // size, num_out)
        parts = {
            "qweight": pack(values),
            "qzeros": pack(zeros),
            "scales": torch.from_numpy(scales).half(),
        }
        group_of = np.array([column // size for column in range(num_in)])
        return parts, matrix(values.T, zeros.T, scales.T, group_of)

    return write


def awq_format(group_size: int) -> Format:
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "version": "gemm",
        "zero_point": True,
    }
    return Format(config, awq(group_size), (24, 48))


# -- float8: E4M3 of OCP 8-bit Floating Point Specification 1.0 ------------------------------------------


def e4m3(code: int) -> float:
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    value = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


def random_float8(rng: np.random.Generator, num_out: int, num_in: int) -> tuple[torch.Tensor, np.ndarray]:
    """A float8 tensor, and its values. The codes 127 and 255 are not numbers."""
    codes = random_integers(rng, 127, num_out, num_in) + 128 * random_integers(rng, 2, num_out, num_in)
    # Large values would drown the others in the sums of a model.
    codes &= 0b10111111
    values = np.array([[e4m3(int(code)) for code in row] for row in codes], np.float32)
    return torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn), values


def scaled_blocks(
    values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, rows: int, columns: int
) -> np.ndarray:
    result = np.empty(values.shape, np.float32)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            place = (row // rows, column // columns)
            result[row, column] = np.float32(values[row, column] - zeros[place]) * np.float32(scales[place])
    return result


def float8(
    scale_name: str, rows: int | None, columns: int | None, static: bool = False
) -> Callable[..., Layer]:
    """One scale for each `rows` x `columns`; None: for all of them. `static`: activations have one too."""

    def write(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
        height, width = rows or num_out, columns or num_in
        tensor, values = random_float8(rng, num_out, num_in)
        scales = random_scales(rng, 2, -(-num_out // height), -(-num_in // width))
        stored = torch.from_numpy(scales)
        if rows is columns is None:
            stored = stored.reshape(1)
        expected = scaled_blocks(values, np.zeros_like(scales), scales, height, width)
        extra = {"input_scale": torch.tensor([0.5])} if static else {}
        return {"weight": tensor, scale_name: stored} | extra, expected

    return write


# -- compressed-tensors: compressors/pack_quantized and naive_quantized ----------------------------------


def compressed(form: str, ignore: list[str] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "dynamic": True}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"] if ignore is None else ignore,
        "quantization_status": "compressed",
    }


def integers8(rows: int | None, columns: int | None, symmetric: bool) -> Callable[..., Layer]:
    def write(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
        height, width = rows or num_out, columns or num_in
        values = random_integers(rng, 256, num_out, num_in) - 128
        scales = random_scales(rng, 256, -(-num_out // height), -(-num_in // width))
        zeros = np.zeros(scales.shape, np.int64)
        parts = {"weight": torch.from_numpy(values.astype(np.int8)), "weight_scale": torch.from_numpy(scales)}
        if not symmetric:
            zeros = random_integers(rng, 256, *scales.shape) - 128
            parts["weight_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
        return parts, scaled_blocks(values, zeros, scales, height, width)

    return write


def pack_bits(row: np.ndarray, bits: int) -> list[int]:
    """The words of a row: number i, plus 2^(bits - 1), has the bits from i * bits of one long integer."""
    stream = 0
    for place, number in enumerate(row):
        stream |= (int(number) + 2 ** (bits - 1)) << (place * bits)
    return [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(-(-len(row) * bits // 32))]


def packed(
    bits: int, group_size: int | None, symmetric: bool, act_order: bool = False, int8_zeros: bool = False
) -> Callable[..., Layer]:
    def write(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
        size, half = group_size or num_in, 2 ** (bits - 1)
        group_of = np.array([column // size for column in range(num_in)])
        values = random_integers(rng, 2**bits, num_out, num_in) - half
        scales = random_scales(rng, 2**bits, num_out, num_in // size)
        zeros = np.zeros(scales.shape, np.int64)
        parts = {
            "weight_packed": words(np.array([pack_bits(row, bits) for row in values])),
            "weight_scale": torch.from_numpy(scales).bfloat16(),
            "weight_shape": torch.tensor([num_out, num_in]),
        }
        scales = parts["weight_scale"].float().numpy()
        if not symmetric:
            zeros = random_integers(rng, 2**bits, *scales.shape) - half
            parts["weight_zero_point"] = torch.from_numpy(zeros.astype(np.int8))
        if not symmetric and not int8_zeros:
            columns = np.array([pack_bits(column, bits) for column in zeros.T])
            parts["weight_zero_point"] = words(np.ascontiguousarray(columns.T))
        if act_order:
            group_of = rng.permutation(group_of)
            parts["weight_g_idx"] = torch.from_numpy(group_of).int()
        return parts, matrix(values, zeros, scales, group_of)

    return write


# -- MXFP4: OCP Microscaling Formats (MX) Specification 1.0 ----------------------------------------------


def e2m1(code: int) -> float:
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -value if sign else value


def mxfp4(rng: np.random.Generator, num_out: int, num_in: int) -> Layer:
    blocks = random_integers(rng, 256, num_out, num_in // 32, 16).astype(np.uint8)
    scales = (random_integers(rng, 6, num_out, num_in // 32) + 119).astype(np.uint8)
    result = np.empty((num_out, num_in), np.float32)
    for row in range(num_out):
        for column in range(num_in):
            block, place = divmod(column, 32)
            byte = int(blocks[row, block, place // 2])
            code = byte & 15 if place % 2 == 0 else byte >> 4
            result[row, column] = e2m1(code) * 2.0 ** (int(scales[row, block]) - 127)
    return {"blocks": torch.from_numpy(blocks), "scales": torch.from_numpy(scales)}, result


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_INT8 = {"num_bits": 8, "type": "int"}
_FLOAT8 = {"num_bits": 8, "type": "float"}

FORMATS: dict[str, Format] = {
    "gptq-2": gptq_format(2, 32),
    "gptq-3-act-order": gptq_format(3, 32, act_order=True),
    "gptq-4": gptq_format(4, 32, checkpoint_format="gptq"),
    "gptq-4-act-order": gptq_format(4, 40, act_order=True),
    "gptq-8-one-group": gptq_format(8, -1),
    "gptq-v2": gptq_format(4, 32, checkpoint_format="gptq_v2"),
    "awq": awq_format(16),
    "awq-one-group": awq_format(-1),
    "fp8-blocks": Format(
        _FP8 | {"weight_block_size": [16, 24]}, float8("weight_scale_inv", 16, 24), (37, 53)
    ),
    "fp8-tensor": Format(
        _FP8 | {"activation_scheme": "static"}, float8("weight_scale", None, None, static=True), (37, 53)
    ),
    "fbgemm-fp8": Format({"quant_method": "fbgemm_fp8"}, float8("weight_scale", 1, None), (37, 53)),
    "int8-channel": Format(
        compressed("int-quantized", **_INT8, strategy="channel"), integers8(1, None, True), (19, 37)
    ),
    "int8-channel-asymmetric": Format(
        compressed("int-quantized", **_INT8, strategy="channel", symmetric=False),
        integers8(1, None, False),
        (19, 37),
    ),
    "int8-tensor": Format(compressed("int-quantized", **_INT8), integers8(None, None, True), (19, 37)),
    "float8-tensor": Format(
        compressed("float-quantized", **_FLOAT8, strategy="tensor"),
        float8("weight_scale", None, None, static=True),
        (19, 37),
    ),
    "float8-channel": Format(
        compressed("float-quantized", **_FLOAT8, strategy="channel"),
        float8("weight_scale", 1, None),
        (19, 37),
    ),
    "float8-block": Format(
        compressed("float-quantized", **_FLOAT8, strategy="block", block_structure=[16, 24]),
        float8("weight_scale", 16, 24),
        (37, 53),
    ),
    "naive-int8-group": Format(
        compressed("naive-quantized", **_INT8, group_size=16), integers8(1, 16, False), (19, 48)
    ),
    "w4a16-group": Format(
        compressed("pack-quantized", num_bits=4, group_size=16), packed(4, 16, True), (19, 48)
    ),
    "w4a16-group-asymmetric": Format(
        compressed("pack-quantized", num_bits=4, group_size=16, symmetric=False),
        packed(4, 16, False),
        (19, 48),
    ),
    "w4a16-group-int8-zeros": Format(
        compressed("pack-quantized", num_bits=4, group_size=16, symmetric=False),
        packed(4, 16, False, int8_zeros=True),
        (19, 48),
    ),
    "w4a16-act-order": Format(
        compressed("pack-quantized", num_bits=4, group_size=16, actorder="group"),
        packed(4, 16, True, act_order=True),
        (19, 48),
    ),
    "w8a16-channel": Format(
        compressed("pack-quantized", num_bits=8, strategy="channel"), packed(8, None, True), (19, 37)
    ),
    "w2a16-channel-asymmetric": Format(
        compressed("pack-quantized", num_bits=2, group_size=-1, symmetric=False),
        packed(2, None, False),
        (19, 37),
    ),
}
