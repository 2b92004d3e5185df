"""The supported architectures, and the function that builds a model of one of them. A new Llama-like family
is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagefleet.engine.backends.base import Backend
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.models.decoder import Decoder
from pagefleet.engine.models.decoder_config import DecoderConfig
from pagefleet.engine.models.required_tensors import required_tensors

_DECODERS: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""model_type -> architecture, in the spelling of config.json."""


def check_supported(config: Mapping[str, Any]) -> None:
    """Raise ModelLoadError if the architecture in config.json is not supported."""
    architectures = config.get("architectures") or [_DECODERS.get(str(config.get("model_type")), "unknown")]
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelLoadError(f"config.json: architectures must be a list of names, not {architectures!r}.")
    if not set(architectures) & set(_DECODERS.values()):
        raise ModelLoadError(
            f"config.json: architecture {architectures[0]!r} (model_type {config.get('model_type')!r}) is "
            "not "
            f"supported; use a model with one of {', '.join(_DECODERS.values())}."
        )


def load_model(config: Mapping[str, Any], weights: WeightReader, backend: Backend[Any, Any]) -> Decoder:
    """Return the model that config.json describes, with weights packed by `backend`.

    Raises ModelLoadError if the architecture or a feature is not supported, or the weights do not match.
    """
    check_supported(config)
    architectures = config.get("architectures") or [_DECODERS[config["model_type"]]]
    family = next(family for family, name in _DECODERS.items() if name in architectures)
    decoder = DecoderConfig.from_hf(config)
    weights.assert_complete(required_tensors(family, config, decoder))
    return Decoder(decoder, weights, backend)
