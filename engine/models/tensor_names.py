"""TensorNames: the names of a family's tensors in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pagefleet.engine.files.linear_weights import DENSE, LinearWeights
from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, MoeSpec, NormSpec

__all__ = ["Convert", "Linear", "TensorNames", "Vector", "required_tensors"]

Convert = Callable[[LinearWeights, LayerSpec], LinearWeights]
"""Changes the weights of a layer from the order of a family's checkpoints to the order of the engine."""


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """The names in a checkpoint, without ".weight" and ".bias". The defaults are Llama's.

    Names of a layer follow `layer` and a dot; those of an expert contain its number as "{}". Parts that the
    ModelSpec does not have are not looked for.
    """

    embedding: str = "model.embed_tokens"
    positions: str = "model.embed_positions"
    project_in: str = "model.project_in"
    project_out: str = "model.project_out"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}"
    prefixes: tuple[tuple[str, str], ...] = ()
    """Other beginnings of names, as pairs (the name's beginning, its replacement); "" is the beginning of
    all. The first pair with which the embedding is found holds for all names."""
    ignored: tuple[str, ...] = ()
    """The beginnings of tensors that are not part of the decoder, such as "model.vision_tower."; "*" means
    any text."""
    ignores_more_layers: bool = False
    """Whether a checkpoint may have layers after the last one, which predict further tokens and are not
    used."""

    pre_attention: str = "input_layernorm"
    post_attention: str = ""
    pre_mlp: str = "post_attention_layernorm"
    post_mlp: str = ""

    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    query_norm: str = "self_attn.q_norm"
    key_norm: str = "self_attn.k_norm"
    sinks: str = "self_attn.sinks"
    """The name of the whole tensor."""
    attention_output: str = "self_attn.o_proj"
    latent: tuple[str, str, str, str] = (
        "self_attn.q_a_proj",
        "self_attn.q_a_layernorm",
        "self_attn.kv_a_proj_with_mqa",
        "self_attn.kv_a_layernorm",
    )
    """Latent attention: down-projection and norm of queries, then of keys and values."""
    latent_query: str = "self_attn.q_b_proj"
    """The up-projection of queries; `qkv[0]` if there is no down-projection."""
    latent_kv: str = "self_attn.kv_b_proj"

    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """The gate and the up-projection, or one name for both; the up-projection alone if there is no gate."""
    down: str = "mlp.down_proj"

    router: str = "mlp.gate"
    correction: str = "mlp.gate.e_score_correction_bias"
    """The name of the whole tensor."""
    expert_gate_up: tuple[str, ...] = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj")
    expert_down: str = "mlp.experts.{}.down_proj"
    stacked_experts: bool = False
    """Whether one tensor has the weights of all experts: [experts, out, in]. The names above are then whole
    names, without a number."""
    transposed_experts: bool = False
    """Whether this tensor is [experts, in, out]."""
    shared_gate_up: tuple[str, ...] = ("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj")
    shared_down: str = "mlp.shared_experts.down_proj"
    shared_gate: str = "mlp.shared_expert_gate"

    convert: Mapping[str, Convert] = field(default_factory=dict)
    """By the fields above, such as "qkv": how the weights of this field are changed before they are
    packed."""


class Linear(NamedTuple):
    """The name of a linear layer that a checkpoint must have."""

    name: str
    bias: bool


class Vector(NamedTuple):
    """The full name of a tensor that a checkpoint must have."""

    name: str


def required_tensors(names: TensorNames, spec: ModelSpec) -> Iterator[Linear | Vector]:
    """Yield everything that the model needs from its checkpoint, except the experts' weights.

    Without this check, a checkpoint that lacks one tensor in each layer would be reported for its first only.
    """
    yield Vector(f"{names.embedding}.weight")
    if spec.positions is not None:
        yield Vector(f"{names.positions}.weight")
    for index, layer in enumerate(spec.layers):
        for item in _layer_tensors(names, layer):
            yield item._replace(name=f"{names.layer.format(index)}.{item.name}")
    yield from _norm(names.final_norm, spec.final_norm)
    if not spec.tied:
        yield Linear(names.head, spec.head_bias)


def _layer_tensors(names: TensorNames, layer: LayerSpec) -> Iterator[Linear | Vector]:
    for part in ("pre_attention", "post_attention", "pre_mlp", "post_mlp"):
        yield from _norm(getattr(names, part), getattr(layer, part))
    yield from _attention_tensors(names, layer.attention)
    if isinstance(layer.mlp, MoeSpec):
        yield Linear(names.router, layer.mlp.router.bias)
        if layer.mlp.router.correction:
            yield Vector(names.correction)
        yield from _mlp(names.shared_gate_up, names.shared_down, layer.mlp.shared)
    else:
        yield from _mlp(names.gate_up, names.down, layer.mlp)


def _attention_tensors(names: TensorNames, attention: AttentionSpec) -> Iterator[Linear | Vector]:
    if attention.latent is not None:
        query_down, query_norm, kv_down, kv_norm = names.latent
        yield Linear(kv_down, attention.qkv_bias)
        yield from _norm(kv_norm, attention.latent.norm)
        yield Linear(names.latent_kv, bias=False)
        if attention.latent.query_rank is not None:
            yield Linear(query_down, attention.qkv_bias)
            yield from _norm(query_norm, attention.latent.norm)
            yield Linear(names.latent_query, bias=False)
        else:
            yield Linear(names.qkv[0], bias=False)
    else:
        yield from (Linear(name, attention.qkv_bias) for name in names.qkv)
    if attention.qk_norm is not None:
        yield from _norm(names.query_norm, attention.qk_norm.norm)
        yield from _norm(names.key_norm, attention.qk_norm.norm)
    if attention.sinks:
        yield Vector(names.sinks)
    yield Linear(names.attention_output, attention.output_bias)


def _mlp(up: tuple[str, ...], down: str, spec: MlpSpec | None) -> Iterator[Linear | Vector]:
    if spec is not None:
        yield from (Linear(name, spec.bias) for name in (*up, down))


def _norm(name: str, spec: NormSpec | None) -> Iterator[Linear | Vector]:
    if spec is not None and spec.weight:
        yield Vector(f"{name}.weight")
        if spec.bias:
            yield Vector(f"{name}.bias")


def transposed(weights: LinearWeights, _layer: LayerSpec) -> LinearWeights:
    """Return weights that are stored [in, out] (GPT-2). Quantisers store them [out, in]."""
    return LinearWeights.of(weights.dense().T, weights.bias) if weights.scheme is DENSE else weights


def split_heads(weights: LinearWeights, layer: LayerSpec) -> LinearWeights:
    """Return qkv weights that are stored head by head, each with its query, key and value (GPT-NeoX)."""
    attention = layer.attention
    assert attention.num_heads == attention.num_kv_heads, attention

    def reorder(tensor: torch.Tensor) -> torch.Tensor:
        heads = tensor.view(attention.num_heads, 3, attention.head_dim, *tensor.shape[1:])
        return heads.transpose(0, 1).flatten(0, 2)

    bias = weights.bias
    return LinearWeights.of(reorder(weights.dense()), None if bias is None else reorder(bias))
