"""DecoderConfig: the dimensions and features of a decoder, from a checkpoint's config.json. Does not read
weights.

A config with a feature that the decoder does not support is rejected: a model that does not load is better
than one that generates nonsense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.models.rope import inverse_frequencies

DEFAULT_EPS = 1e-6
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class DecoderConfig:
    """The configuration of a Llama-like decoder: pre-norm layers of grouped-query attention with RoPE and a
    SwiGLU MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    inv_freq: torch.Tensor
    """Rotary frequencies, float32 [head_dim / 2], in radians per position."""
    max_model_len: int
    """Context length in tokens: the trained positions, or the sliding window if it is shorter."""
    tie_word_embeddings: bool
    dtype: torch.dtype
    """The dtype of the checkpoint."""

    @property
    def context_weight(self) -> float:
        """The work that each token of context adds to a token, relative to a token without context.

        That is the multiplications of attention divided by those of the layers' matrices.
        """
        width = self.num_heads * self.head_dim
        projections = self.hidden_size * (2 * width + 2 * self.num_kv_heads * self.head_dim)
        return 2 * width / (projections + 3 * self.hidden_size * self.intermediate_size)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Return the configuration in a Hugging Face config.json.

        Raises ModelLoadError if a value is missing or invalid, or a feature is not supported.
        """
        _refuse_unsupported(config)
        try:
            for name in _POSITIVE:
                if config.get(name) is not None and int(config[name]) < 1:
                    raise ModelLoadError(f"config.json: {name} must be at least 1, not {config[name]!r}.")
            num_heads = int(config["num_attention_heads"])
            head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // num_heads)
            return cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                intermediate_size=int(config["intermediate_size"]),
                num_layers=int(config["num_hidden_layers"]),
                num_heads=num_heads,
                num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
                head_dim=head_dim,
                rms_norm_eps=float(config.get("rms_norm_eps", DEFAULT_EPS)),
                inv_freq=inverse_frequencies(config, head_dim),
                max_model_len=_max_model_len(config),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                dtype=checkpoint_dtype(config),
            )
        except KeyError as error:
            raise ModelLoadError(
                f"config.json has no {error.args[0]!r}; use the checkpoint of a decoder model."
            ) from error
        except (TypeError, ValueError) as error:
            raise ModelLoadError(
                f"config.json has a value of the wrong type ({error}); download the file again."
            ) from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelLoadError(
            f"config.json: hidden_act {activation!r} is not supported, only silu; use a different model."
        )
    if quantization := config.get("quantization_config"):
        method = (
            quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        )
        raise ModelLoadError(
            f"config.json: quantization_config with method {method!r} is not supported; use a checkpoint of "
            "the model "
            "in bfloat16 or float32."
        )


def _max_model_len(config: Mapping[str, Any]) -> int:
    """Return the context length. Within one sliding window, full attention is the same, so the window caps
    it."""
    length = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return length
    layer_types = config.get("layer_types")
    if layer_types and "sliding_attention" not in layer_types:
        return length
    return min(length, int(window))


def checkpoint_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of the checkpoint. Raises ModelLoadError if it is not a floating point dtype of
    torch."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelLoadError(
            f"config.json: dtype {name!r} is not a floating point dtype of torch; use bfloat16, float16 or "
            "float32."
        )
    return dtype
