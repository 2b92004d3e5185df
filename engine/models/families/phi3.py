"""Phi-3, Phi-3.5 and Phi-4-mini: Llama with joined projections, LongRoPE and a sliding window."""

from __future__ import annotations

from pagefleet.engine.model_spec import ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, gated_mlp, model, pre_norm_layers, rms_norm, with_windows
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames


def read(config: ConfigReader) -> ModelSpec:
    norm = rms_norm(config, default=1e-5)
    attentions = with_windows(config, attention(config, read_rope(config)))
    return model(config, pre_norm_layers(config, attentions, gated_mlp(config), norm), norm)


FAMILY = Family(
    model_types=("phi3",),
    architectures=("Phi3ForCausalLM",),
    read=read,
    names=TensorNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
)
