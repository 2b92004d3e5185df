"""CompressedTensors: the groups of layers in a `quantization_config` of compressed-tensors.

Source: compressed-tensors 0.20, quantization/quant_config.py, quantization/quant_args.py and utils/match.py.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import DENSE, WeightScheme
from pagefleet.engine.files.schemes.base import Quantization
from pagefleet.engine.files.schemes.compressed_tensors import Granularity, PackedScheme, PlainScheme

_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_PACKED = "pack-quantized"
_PACKED_BITS = (2, 4, 8)
"""Versions of the library differ in how they pack other numbers of bits."""
_LINEAR = "Linear"
"""The class of all linear layers, as a target."""


class _Group(NamedTuple):
    targets: Sequence[str]
    scheme: WeightScheme


class CompressedTensors(Quantization):
    """`quant_method` "compressed-tensors"."""

    parameters = (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")

    def __init__(self, config: Mapping[str, Any]) -> None:
        for key in ("sparsity_config", "transform_config"):
            _refuse_extension(key, config.get(key))
        groups = config.get("config_groups") or {}
        if not isinstance(groups, Mapping) or not all(isinstance(each, Mapping) for each in groups.values()):
            raise ModelLoadError(
                "config.json: quantization_config: config_groups must be a table of groups with `targets` "
                f"and `weights`, not {groups!r}; download the file again."
            )
        self._groups = [
            _Group(
                group.get("targets") or (), _scheme(group, str(group.get("format") or config.get("format")))
            )
            for group in groups.values()
        ]

    def scheme_of(self, linear: str, stored: Container[str]) -> WeightScheme:
        return self._quantised(linear) if f"{linear}.weight_scale" in stored else DENSE

    def _quantised(self, linear: str) -> WeightScheme:
        """Return the scheme of the most specific target: a name, then a regular expression, then the
        class."""
        for matches in (str.__eq__, _matches, _is_class):
            for group in self._groups:
                if any(matches(target, linear) for target in group.targets):
                    return group.scheme
        # The targets of multimodal models name modules of transformers, whose tensors have other prefixes.
        return self._groups[0].scheme if len(self._groups) == 1 else DENSE

    def _packing(self, tensor: str) -> Fraction:
        linear, _, part = tensor.rpartition(".")
        scheme = self._quantised(linear)
        if part == "weight_packed" and isinstance(scheme, PackedScheme):
            return Fraction(32, scheme.bits)
        return Fraction(1)


def _matches(target: str, linear: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), linear) is not None
    return target == linear


def _is_class(target: str, _linear: str) -> bool:
    return target == _LINEAR


def _scheme(group: Mapping[str, Any], form: str) -> WeightScheme:
    weights = group.get("weights")
    if weights is None or form == "dense":
        return DENSE
    bits = weights.get("num_bits", 8)
    if form in _PLAIN:
        return PlainScheme(_granularity(weights))
    if form == _PACKED and weights.get("type", "int") == "int" and bits in _PACKED_BITS:
        return PackedScheme(bits, _granularity(weights))
    supported = ", ".join((*_PLAIN, _PACKED))
    raise ModelLoadError(
        f"config.json: quantization_config: compressed-tensors weights in the format {form!r} with {bits} "
        f"bits are not supported; use a checkpoint in one of the formats {supported} (with 2, 4 or 8 bits), "
        "or in bfloat16."
    )


def _granularity(weights: Mapping[str, Any]) -> Granularity:
    size, block = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if isinstance(block, str):
        block = block.split("x")
    try:
        if strategy == "tensor":
            return Granularity(None, None)
        if strategy == "channel":
            return Granularity(1, None)
        if strategy == "group":
            return Granularity(1, _positive(size))
        if strategy == "block":
            rows, columns = block or (0, 0)
            return Granularity(_positive(rows), _positive(columns))
    except (TypeError, ValueError) as error:
        raise ModelLoadError(
            f"config.json: quantization_config: strategy {strategy!r} has the group_size {size!r} and the "
            f"block_structure {block!r}; download the file again."
        ) from error
    raise ModelLoadError(
        f"config.json: quantization_config: strategy {strategy!r} of weights is not supported; use a "
        "checkpoint with the strategy tensor, channel, group or block."
    )


def _positive(size: Any) -> int:
    if int(size) < 1:
        raise ValueError(f"{size} is not positive")
    return int(size)


def _refuse_extension(key: str, value: Any) -> None:
    """Raise ModelLoadError for sparse weights, and for transforms of activations."""
    if not isinstance(value, Mapping):
        return
    needed = (
        value.get("config_groups") if key == "transform_config" else value.get("format", "dense") != "dense"
    )
    if needed:
        detail = f" with the format {value['format']!r}" if "format" in value else ""
        raise ModelLoadError(
            f"config.json: quantization_config: {key}{detail} is not supported; use a checkpoint without "
            "it, or in bfloat16."
        )
