"""The supported methods of quantisation, by the name in config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.awq import AWQ
from pagefleet.engine.files.schemes.base import NoQuantization, Quantization
from pagefleet.engine.files.schemes.compressed_config import CompressedTensors
from pagefleet.engine.files.schemes.fp8 import FP8
from pagefleet.engine.files.schemes.gptq import GPTQ
from pagefleet.engine.files.schemes.mxfp4 import MXFP4

_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "awq": AWQ,
    "compressed-tensors": CompressedTensors,
    "fbgemm_fp8": FP8,
    "fp8": FP8,
    "gptq": GPTQ,
    "mxfp4": lambda _config: MXFP4(),
}


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the `quantization_config` in the content of config.json, or None if the weights are dense.

    Older files of compressed-tensors have `compression_config`, with the methods' settings one level deeper.
    """
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        found = place.get("quantization_config") or place.get("compression_config")
        if not found:
            continue
        if not isinstance(found, Mapping):
            raise ModelLoadError(
                f"config.json: quantization_config must be a table of settings, not {found!r}; download the "
                "file again."
            )
        inner = found.get("quantization_config")
        return {**found, **inner} if isinstance(inner, Mapping) else found
    return None


def check_quantization(config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError if the weights that config.json describes have a format that is not supported."""
    read_quantization(quantization_config(config))


def read_quantization(quantization: Mapping[str, Any] | None) -> Quantization:
    """Return the formats that a `quantization_config` describes. Raises ModelLoadError."""
    if not quantization:
        return NoQuantization()
    method = str(quantization.get("quant_method") or _unnamed_method(quantization))
    if method not in _METHODS:
        raise ModelLoadError(
            f"config.json: quantization_config with the method {method!r} is not supported; use a "
            f"checkpoint of the model in bfloat16, or one with the method {', '.join(_METHODS)}, or a GGUF "
            "file."
        )
    return _METHODS[method](quantization)


def _unnamed_method(quantization: Mapping[str, Any]) -> str:
    """Return the method of files that are older than `quant_method`."""
    if "load_in_4bit" in quantization or "load_in_8bit" in quantization:
        return "bitsandbytes"
    return "compressed-tensors" if "config_groups" in quantization else "unknown"
