"""OPT: learned positions with an offset; opt-350m has norms after the additions and narrower embeddings."""

from __future__ import annotations

from dataclasses import replace

from pagefleet.engine.model_spec import LayerSpec, MlpSpec, ModelSpec, NormSpec, PositionSpec
from pagefleet.engine.models.config_reader import ConfigReader
from pagefleet.engine.models.family import Family
from pagefleet.engine.models.parts import attention, model, pre_norm_layers
from pagefleet.engine.models.tensor_names import TensorNames

OFFSET = 2


def read(config: ConfigReader) -> ModelSpec:
    affine = config.flag("layer_norm_elementwise_affine", default=True)
    norm = NormSpec(1e-5, centred=True, bias=affine, weight=affine)
    bias, is_first = (
        config.flag("enable_bias", default=True),
        config.flag("do_layer_norm_before", default=True),
    )
    usual = attention(config, None, qkv_bias=bias, output_bias=bias)
    activation = config.activation("activation_function", "relu")
    mlp = MlpSpec(config.integer("ffn_dim"), activation, gated=False, bias=bias)
    layers = pre_norm_layers(config, [usual] * config.integer("num_hidden_layers"), mlp, norm)
    hidden = config.integer("hidden_size")
    width = config.integer("word_embed_proj_dim", hidden)
    return model(
        config,
        layers if is_first else [_norm_after_add(layer, norm) for layer in layers],
        norm if is_first and not config.flag("_remove_final_layer_norm") else None,
        tied=config.flag("tie_word_embeddings", default=True),
        embed_dim=None if width == hidden else width,
        positions=PositionSpec(config.integer("max_position_embeddings") + OFFSET, OFFSET),
    )


def _norm_after_add(layer: LayerSpec, norm: NormSpec) -> LayerSpec:
    return replace(
        layer, pre_attention=None, pre_mlp=None, post_attention=norm, post_mlp=norm, norm_after_add=True
    )


FAMILY = Family(
    model_types=("opt",),
    architectures=("OPTForCausalLM",),
    read=read,
    names=TensorNames(
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        project_in="model.decoder.project_in",
        project_out="model.decoder.project_out",
        final_norm="model.decoder.final_layer_norm",
        layer="model.decoder.layers.{}",
        # The first checkpoints have the names of the model without a head.
        prefixes=(("model.", ""),),
        pre_attention="self_attn_layer_norm",
        post_attention="self_attn_layer_norm",
        pre_mlp="final_layer_norm",
        post_mlp="final_layer_norm",
        attention_output="self_attn.out_proj",
        gate_up=("fc1",),
        down="fc2",
    ),
)
