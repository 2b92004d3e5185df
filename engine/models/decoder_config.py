"""What a decoder is made of, read from a checkpoint's config.json. Knows no weights.

Only features that the decoder computes are let through: a config that asks for another one is refused
with a sentence, since a model that runs and says nonsense is worse than one that does not load.
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
    """A Llama-like decoder: pre-norm blocks of rotary grouped-query attention and a gated SiLU MLP."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    inv_freq: torch.Tensor
    """float32 [head_dim / 2]"""
    max_model_len: int
    """Tokens of context: the trained positions, or the sliding window where that is shorter."""
    tie_word_embeddings: bool
    dtype: torch.dtype
    """What the checkpoint says it was saved in."""

    @property
    def context_weight(self) -> float:
        """What each token before it adds to the work on a token, as a share of the work without any: the
        multiplications of attention by those of the layers' matrices."""
        width = self.num_heads * self.head_dim
        projections = self.hidden_size * (2 * width + 2 * self.num_kv_heads * self.head_dim)
        return 2 * width / (projections + 3 * self.hidden_size * self.intermediate_size)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """Reads a Hugging Face config.json; raises ModelLoadError for what is missing or unsupported."""
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
            raise ModelLoadError(f"config.json has no {error.args[0]!r}; is it a decoder's?") from error
        except (TypeError, ValueError) as error:
            raise ModelLoadError(f"config.json has a value of the wrong type ({error}).") from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelLoadError(f"Activation {activation!r} is not supported; the decoder computes silu.")
    if quantization := config.get("quantization_config"):
        method = (
            quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else quantization
        )
        raise ModelLoadError(
            f"Checkpoints quantised with {method!r} are not supported; use one in bfloat16 or float32."
        )


def _max_model_len(config: Mapping[str, Any]) -> int:
    """Full attention over at most one window is what a sliding window computes, so the window is the cap."""
    length = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return length
    layer_types = config.get("layer_types")
    if layer_types and "sliding_attention" not in layer_types:
        return length
    return min(length, int(window))


def checkpoint_dtype(config: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the checkpoint says it was saved in; raises ModelLoadError if that is none."""
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelLoadError(f"config.json names the dtype {name!r}, which is not one of torch's.")
    return dtype
