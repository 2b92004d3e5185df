"""ModelSpec: a decoder or encoder described as data. Does not know checkpoints, families or backends.

One file for each family (models/families/) makes it from config.json; the decoder and every backend read it.
Shapes below: H query heads, K key/value heads, D elements of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "AttentionSpec",
    "LatentSpec",
    "LayerSpec",
    "MlpSpec",
    "ModelSpec",
    "MoeSpec",
    "NormSpec",
    "PositionSpec",
    "QkNormSpec",
    "QueryGrowthSpec",
    "RopeSpec",
    "RouterSpec",
]


@dataclass(frozen=True, slots=True)
class NormSpec:
    """A normalisation over the last axis: RMS norm (arXiv 1910.07467) or layer norm (arXiv 1607.06450)."""

    eps: float
    centred: bool = False
    """Whether the mean is subtracted: layer norm instead of RMS norm."""
    bias: bool = False
    weight: bool = True
    """Whether the norm has learned weights."""
    unit_offset: bool = False
    """Whether the stored weight is the difference from 1 (Gemma)."""


@dataclass(frozen=True, slots=True, eq=False)
class RopeSpec:
    """Rotary position embedding (RoFormer, Su et al. 2021). Layers with the same rotation share one
    object."""

    inv_freq: torch.Tensor
    """Frequencies, float32 [R / 2], in radians per position: R elements of a head are rotated, at most D."""
    scaling: float = 1.0
    """The factor of cosine and sine (YaRN's and LongRoPE's attention factor)."""
    interleaved: bool = False
    """Whether neighbours are pairs (0 and 1, 2 and 3, ...) instead of the halves of the rotated part."""
    start: int = 0
    """The first rotated element of a head."""
    variant: str = ""
    """The frequencies that `max_model_len` chose, for the fingerprint; "" if they do not depend on it."""


@dataclass(frozen=True, slots=True)
class QkNormSpec:
    """The normalisation of queries and keys before they are rotated."""

    norm: NormSpec
    across_heads: bool = False
    """Whether the mean is over all heads of a token, not over each head."""
    per_head: bool = False
    """Whether each head has its own weights: [H, D] and [K, D] instead of [D]."""


@dataclass(frozen=True, slots=True)
class QueryGrowthSpec:
    """Rotated queries grow with their position p, by the factor 1 + beta * log(1 + floor(p / length))."""

    beta: float
    length: int
    """Tokens."""


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, 2024): low-rank projections of queries, keys and values.

    A head of D elements has first those without a position, then `rope_dim` rotated ones, which all key heads
    share.
    """

    query_rank: int | None
    """The rank of the queries' projection. None: one full projection."""
    kv_rank: int
    rope_dim: int
    norm: NormSpec


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """The factor of the scores, usually D ** -0.5."""
    rope: RopeSpec | None = None
    value_dim: int | None = None
    """Elements of a value head, at most D. None: D."""
    window: int | None = None
    """Tokens that a query attends to, including its own. None: all."""
    soft_cap: float | None = None
    """Scores s become soft_cap * tanh(s / soft_cap)."""
    sinks: bool = False
    """Whether each query head has a learned score that takes weight from all values (gpt-oss)."""
    qk_norm: QkNormSpec | None = None
    query_growth: QueryGrowthSpec | None = None
    latent: LatentSpec | None = None
    causal: bool = True
    """Whether a query attends to its own token and those before only. False: an encoder."""
    qkv_bias: bool = False
    output_bias: bool = False

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0, self
        assert self.rope is None or self.rope.start + 2 * len(self.rope.inv_freq) <= self.head_dim, self

    @property
    def num_elements(self) -> int:
        """Elements of the keys and values of one token in the KV cache."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A feed-forward network: down(act(gate(x)) * up(x)), or down(act(up(x))) if it is not gated."""

    width: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How a token chooses its experts, and their weights."""

    scores: str = "softmax"
    """The function of the logits: softmax over all experts, "softmax_of_top" over the chosen ones, or
    sigmoid."""
    normalise: bool = True
    """Whether the weights of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """The factor of the weights."""
    bias: bool = False
    """Whether the logits have a bias."""
    correction: bool = False
    """Whether a learned bias is added to the scores to choose the experts, but not to weigh them
    (DeepSeek-V3)."""
    num_groups: int = 1
    """Experts fall into this many equal groups, of which `top_groups` are kept."""
    top_groups: int = 1
    group_score: str = "max"
    """The score of a group: its largest score, or "top2": the sum of the two largest."""
    masked_score: float = 0.0
    """The score of experts in groups that are not kept."""


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts: each token is computed by `top_k` of them."""

    num_experts: int
    top_k: int
    expert: MlpSpec
    router: RouterSpec = RouterSpec()
    shared: MlpSpec | None = None
    """A further expert that computes every token."""
    shared_gate: bool = False
    """Whether a sigmoid gate scales the shared expert (Qwen2-MoE)."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One layer. A norm that is None does not exist.

    Sequential: x += post_attention(attend(pre_attention(x))), then x += post_mlp(mlp(pre_mlp(x))).
    Parallel: x += attend(pre_attention(x)) + mlp(pre_mlp(x)); without `pre_mlp`, both read the same norm.
    """

    attention: AttentionSpec
    mlp: MlpSpec | MoeSpec
    pre_attention: NormSpec | None = None
    post_attention: NormSpec | None = None
    pre_mlp: NormSpec | None = None
    post_mlp: NormSpec | None = None
    parallel: bool = False
    norm_after_add: bool = False
    """Whether the two `post_` norms follow the addition to x, as in the original Transformer."""
    residual_scale: float = 1.0
    """The factor of what attention and MLP add."""


@dataclass(frozen=True, slots=True)
class PositionSpec:
    """Learned position embeddings, added to those of the tokens."""

    num_positions: int
    """Rows of the table."""
    offset: int = 0
    """The row of position 0."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model, as far as its computation depends on it."""

    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec | None
    tied: bool
    """Whether the embedding is the output head, too."""
    max_model_len: int
    """Context length in tokens."""
    dtype: torch.dtype
    """The dtype of the checkpoint."""
    embed_scale: float = 1.0
    embed_dim: int | None = None
    """Elements of an embedding, with a projection to and from `hidden_size`. None: `hidden_size`, without
    one."""
    positions: PositionSpec | None = None
    head_bias: bool = False
    logit_scale: float = 1.0
    """The factor of the logits."""
    logit_soft_cap: float | None = None
    source: str = ""
    """The library whose code computes everything but the attention, with its version; "" for the engine."""

    @property
    def kv_windows(self) -> tuple[int | None, ...]:
        """The windows of the layers, without repetition; None, if a layer has none, comes first."""
        windows = {layer.attention.window for layer in self.layers}
        return tuple(sorted(windows, key=lambda window: (window is not None, window)))

    def kv_group(self, layer: int) -> int:
        """Return the index of the layer's window in `kv_windows`."""
        return self.kv_windows.index(self.layers[layer].attention.window)

    @property
    def variant(self) -> str:
        """What else the tokens depend on, for the fingerprint: what `max_model_len` chose, and `source`."""
        ropes = (layer.attention.rope for layer in self.layers)
        chosen = sorted({rope.variant for rope in ropes if rope is not None and rope.variant})
        return " ".join(filter(None, [self.source, *chosen]))

    @property
    def context_weight(self) -> float:
        """The work that each token of context adds to a token, relative to a token without context.

        That is the multiplications of attention divided by those of the layers' matrices. Layers with a
        window count as if they had no context.
        """
        attentions = [layer.attention for layer in self.layers]
        context = sum(2 * each.num_heads * each.head_dim for each in attentions if each.window is None)
        return context / sum(self._products(layer) for layer in self.layers)

    def _products(self, layer: LayerSpec) -> int:
        attention = layer.attention
        heads = 2 * (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        mlps = [(layer.mlp, 1)] if isinstance(layer.mlp, MlpSpec) else [(layer.mlp.expert, layer.mlp.top_k)]
        if isinstance(layer.mlp, MoeSpec) and layer.mlp.shared is not None:
            mlps.append((layer.mlp.shared, 1))
        widths = sum(times * mlp.width * (3 if mlp.gated else 2) for mlp, times in mlps)
        return self.hidden_size * (heads + widths)
