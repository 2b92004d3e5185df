"""StarCoder2: layer norms, an MLP without a gate, biases, and a sliding window."""

from __future__ import annotations

from pagefleet.engine.model_spec import MlpSpec, ModelSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, layer_norm, model, pre_norm_layers, with_windows
from pagefleet.engine.models.rope import read_rope
from pagefleet.engine.models.tensor_names import TensorNames


def read(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(num_key_value_heads=2)
    norm, bias = layer_norm(config, "norm_epsilon"), config.flag("use_bias", default=True)
    usual = attention(config, read_rope(config), qkv_bias=bias, output_bias=bias)
    activation = config.activation(default="gelu_pytorch_tanh")
    mlp = MlpSpec(config.integer("intermediate_size"), activation, gated=False, bias=bias)
    layers = pre_norm_layers(config, with_windows(config, usual), mlp, norm)
    return model(config, layers, norm, tied=config.flag("tie_word_embeddings", default=True))


FAMILY = Family(
    model_types=("starcoder2",),
    architectures=("Starcoder2ForCausalLM",),
    read=read,
    names=TensorNames(gate_up=("mlp.c_fc",), down="mlp.c_proj"),
)
