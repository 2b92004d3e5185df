"""GPT-2: learned positions, layer norms, and matrices that are stored transposed."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import MlpSpec, ModelSpec, PositionSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, layer_norm, model, pre_norm_layers
from pagefleet.engine.models.tensor_names import TensorNames, transposed

USUAL_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def read(config: ConfigReader) -> ModelSpec:
    config = config.renamed(USUAL_NAMES)
    norm, hidden = layer_norm(config, "layer_norm_epsilon"), config.integer("hidden_size")
    usual = attention(config, None, qkv_bias=True, output_bias=True)
    if not config.flag("scale_attn_weights", default=True):
        usual = replace(usual, scale=1.0)
    attentions = [usual] * config.integer("num_hidden_layers")
    if config.flag("scale_attn_by_inverse_layer_idx"):
        attentions = [replace(each, scale=each.scale / index) for index, each in enumerate(attentions, 1)]
    activation = config.activation("activation_function", "gelu_new")
    mlp = MlpSpec(config.integer("n_inner", 4 * hidden), activation, gated=False, bias=True)
    return model(
        config,
        pre_norm_layers(config, attentions, mlp, norm),
        norm,
        tied=config.flag("tie_word_embeddings", default=True),
        positions=PositionSpec(config.integer("max_position_embeddings")),
    )


FAMILY = Family(
    model_types=("gpt2",),
    architectures=("GPT2LMHeadModel",),
    read=read,
    names=TensorNames(
        embedding="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        layer="transformer.h.{}",
        # The first checkpoints have the names of the model without a head.
        prefixes=(("transformer.", ""),),
        ignored=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias", "h.*.attn.bias"),
        pre_attention="ln_1",
        pre_mlp="ln_2",
        qkv=("attn.c_attn",),
        attention_output="attn.c_proj",
        gate_up=("mlp.c_fc",),
        down="mlp.c_proj",
        convert=dict.fromkeys(("qkv", "attention_output", "gate_up", "down"), transposed),
    ),
)
