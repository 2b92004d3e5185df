"""The families that the engine knows, and the functions that read config.json and load a model of one of
them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from pagefleet.engine.backends.base import Backend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.schemes.registry import check_quantization, quantization_config
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models import families
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.decoder import Decoder
from pagefleet.engine.models.decoder_loader import DecoderLoader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.model import Model

__all__ = ["check_supported", "find_family", "load_model", "native_families", "read_spec"]


@cache
def native_families() -> Mapping[str, Family]:
    """Return the families of models/families/ by the names of their files."""
    names = sorted(module.name for module in iter_modules(families.__path__))
    return {name: import_module(f"{families.__name__}.{name}").FAMILY for name in names}


def find_family(config: Mapping[str, Any]) -> Family | None:
    """Return the native family of a config.json, or None. Raises ModelLoadError if it names no
    architecture."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelLoadError(f"config.json: architectures must be a list of names, not {architectures!r}.")
    model_type = config.get("model_type")
    if not architectures and not isinstance(model_type, str):
        raise ModelLoadError(
            "config.json has neither architectures nor model_type; use the checkpoint of a decoder model."
        )
    for family in native_families().values():
        if set(architectures) & set(family.architectures):
            return family
        if not architectures and model_type in family.model_types:
            return family
    return None


def read_spec(config: Mapping[str, Any], max_model_len: int | None = None) -> ModelSpec:
    """Return the description of the model in config.json.

    Args:
        max_model_len: the context length that the user wants, in tokens. None: the model's.

    Raises ModelLoadError if the architecture or a feature is not supported, or a value is missing or invalid.
    """
    family = find_family(config)
    if family is None:
        # Imports transformers, which takes seconds.
        from pagefleet.engine.models.fallback_probe import probe

        return probe(config, max_model_len)
    reader = ConfigReader(config, max_model_len)
    try:
        return family.read(reader.part(family.text_config) if family.text_config else reader)
    # A value of the wrong type or out of range can fail anywhere in a family's arithmetic.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelLoadError(
            f"config.json has a value that cannot be used ({error}); download the file again."
        ) from error


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError if the engine cannot run the model in config.json, or read its weights."""
    read_spec(config)
    check_quantization(config)


def load_model(
    config: Mapping[str, Any],
    folder: Path,
    backend: Backend[Any, Any],
    max_model_len: int | None = None,
) -> Model:
    """Return the model in `folder` that `config` describes, with weights packed by `backend`.

    Raises ModelLoadError if the architecture or a feature is not supported, or the weights do not match.
    """
    family = find_family(config)
    if family is None:
        from pagefleet.engine.models.fallback import TransformersModel

        return TransformersModel(config, folder, backend, max_model_len)
    spec, reader = read_spec(config, max_model_len), WeightReader(folder, quantization_config(config))
    return Decoder(spec, DecoderLoader(spec, family.names, reader, backend).load(), backend)
