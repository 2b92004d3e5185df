"""DecoderLoader: packs a checkpoint's tensors for a decoder, as its ModelSpec and its TensorNames say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from pagefleet.engine.backends.base import AttentionWeights, Backend, MoeWeights, NormWeights
from pagefleet.engine.errors import ModelLoadError
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.files.weight_reader import WeightReader
from pagefleet.engine.model_spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    QkNormSpec,
)
from pagefleet.engine.models.tensor_names import Linear, TensorNames, required_tensors

_MAX_MORE_LAYERS: Final = 8

__all__ = ["DecoderLayer", "DecoderLoader", "DecoderWeights", "LatentWeights", "MlpWeights"]


@dataclass(frozen=True)
class MlpWeights:
    """A feed-forward network. Only the backend knows the format of packed weights."""

    spec: MlpSpec
    up: Any
    """The gate, if there is one, and the up-projection."""
    down: Any


@dataclass(frozen=True)
class LatentWeights:
    """The projections of latent attention."""

    query_down: Any | None
    query_norm: NormWeights | None
    query: Any
    kv_down: Any
    kv_norm: NormWeights
    kv: Any


@dataclass(frozen=True)
class DecoderLayer:
    """The weights of one layer."""

    spec: LayerSpec
    pre_attention: NormWeights | None
    post_attention: NormWeights | None
    pre_mlp: NormWeights | None
    post_mlp: NormWeights | None
    qkv: Any
    """Packed, or LatentWeights."""
    attention: AttentionWeights
    output: Any
    mlp: MlpWeights | MoeWeights[Any]
    shared: MlpWeights | None
    shared_gate: Any | None


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a decoder."""

    embedding: torch.Tensor
    positions: torch.Tensor | None
    project_in: Any | None
    project_out: Any | None
    layers: list[DecoderLayer]
    final_norm: NormWeights | None
    head: Any


class DecoderLoader:
    """Loads the weights of one decoder.

    Raises ModelLoadError if the checkpoint lacks a tensor, has one of another shape, or has one that the
    decoder does not use.
    """

    def __init__(
        self, spec: ModelSpec, names: TensorNames, reader: WeightReader, backend: Backend[Any, Any]
    ) -> None:
        self._spec, self._names, self._reader, self._backend = spec, names, reader, backend
        self._prefix = next(
            (pair for pair in names.prefixes if self._replaced(f"{names.embedding}.weight", pair) in reader),
            ("", ""),
        )
        reader.assert_complete(self._required())

    def _required(self) -> Iterator[str]:
        """Yield the full names of the tensors that the checkpoint must have."""
        for item in required_tensors(self._names, self._spec):
            name = self._full(item.name)
            if not isinstance(item, Linear):
                yield name
                continue
            # The tensors of a quantised layer have other names.
            if not self._reader.has_linear(name):
                yield f"{name}.weight"
            if item.bias:
                yield f"{name}.bias"

    def load(self) -> DecoderWeights:
        spec, names, backend = self._spec, self._names, self._backend
        width = spec.embed_dim or spec.hidden_size
        stored = self._tensor(f"{names.embedding}.weight", spec.vocab_size, width)
        embedding = backend.pack_table(stored)
        positions = None
        if spec.positions is not None:
            num_rows = spec.positions.num_positions
            table = self._tensor(f"{names.positions}.weight", num_rows, spec.hidden_size)
            positions = backend.pack_table(table)
        projects = spec.embed_dim is not None
        weights = DecoderWeights(
            embedding=embedding,
            positions=positions,
            project_in=self._linear((names.project_in,), [spec.hidden_size], width) if projects else None,
            project_out=self._linear((names.project_out,), [width], spec.hidden_size) if projects else None,
            layers=[self._layer(index, layer) for index, layer in enumerate(spec.layers)],
            final_norm=self._norm(names.final_norm, spec.final_norm, spec.hidden_size),
            head=self._head(embedding, stored, width),
        )
        self._reader.assert_all_taken(self._ignored())
        return weights

    def _ignored(self) -> list[str]:
        """Return the beginnings of the names of tensors that are not used."""
        names, num_layers = self._names, len(self._spec.layers)
        more = range(num_layers, num_layers + _MAX_MORE_LAYERS) if names.ignores_more_layers else ()
        return [*names.ignored, *(f"{self._full(names.layer.format(index))}." for index in more)]

    def _head(self, embedding: torch.Tensor, stored: torch.Tensor, width: int) -> Any:
        if self._spec.tied:
            # Some checkpoints contain a copy of the tied head; it is taken, but not used.
            self._reader.take_optional(self._full(f"{self._names.head}.weight"))
            # safetensors maps files into memory; pack_table has copied what needs another dtype or device.
            is_mapped = embedding.data_ptr() == stored.data_ptr()
            return self._backend.pack_tied_head(embedding, is_mapped=is_mapped)
        return self._linear((self._names.head,), [self._spec.vocab_size], width)

    def _layer(self, index: int, spec: LayerSpec) -> DecoderLayer:
        names, root, hidden = self._names, self._names.layer.format(index), self._spec.hidden_size
        attention = spec.attention
        moe = spec.mlp if isinstance(spec.mlp, MoeSpec) else None
        return DecoderLayer(
            spec=spec,
            pre_attention=self._norm(f"{root}.{names.pre_attention}", spec.pre_attention, hidden),
            post_attention=self._norm(f"{root}.{names.post_attention}", spec.post_attention, hidden),
            pre_mlp=self._norm(f"{root}.{names.pre_mlp}", spec.pre_mlp, hidden),
            post_mlp=self._norm(f"{root}.{names.post_mlp}", spec.post_mlp, hidden),
            qkv=self._qkv(root, spec),
            attention=self._attention(root, attention),
            output=self._layer_linear(
                root,
                "attention_output",
                spec,
                [hidden],
                attention.num_heads * (attention.value_dim or attention.head_dim),
            ),
            mlp=self._mlp(root, "gate_up", "down", spec, spec.mlp)
            if isinstance(spec.mlp, MlpSpec)
            else self._experts(root, spec, spec.mlp),
            shared=self._mlp(root, "shared_gate_up", "shared_down", spec, moe.shared)
            if moe is not None and moe.shared is not None
            else None,
            shared_gate=self._layer_linear(root, "shared_gate", spec, [1], hidden)
            if moe is not None and moe.shared_gate
            else None,
        )

    def _qkv(self, root: str, spec: LayerSpec) -> Any:
        attention, hidden = spec.attention, self._spec.hidden_size
        if attention.latent is not None:
            return self._latent(root, spec)
        query, key = attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
        value = attention.num_kv_heads * (attention.value_dim or attention.head_dim)
        return self._layer_linear(root, "qkv", spec, [query, key, value], hidden)

    def _latent(self, root: str, spec: LayerSpec) -> LatentWeights:
        attention, names, hidden = spec.attention, self._names, self._spec.hidden_size
        latent = attention.latent
        assert latent is not None
        num_heads, value_dim = attention.num_heads, attention.value_dim or attention.head_dim
        query_down, query_norm, kv_down, kv_norm = (f"{root}.{name}" for name in names.latent)
        rank = latent.query_rank
        query_name = names.latent_query if rank is not None else names.qkv[0]
        num_kv_rows = num_heads * (attention.head_dim - latent.rope_dim + value_dim)
        return LatentWeights(
            query_down=None if rank is None else self._linear((query_down,), [rank], hidden),
            query_norm=None if rank is None else self._norm(query_norm, latent.norm, rank),
            query=self._linear((f"{root}.{query_name}",), [num_heads * attention.head_dim], rank or hidden),
            kv_down=self._linear((kv_down,), [latent.kv_rank + latent.rope_dim], hidden),
            kv_norm=self._required_norm(kv_norm, latent.norm, latent.kv_rank),
            kv=self._linear((f"{root}.{names.latent_kv}",), [num_kv_rows], latent.kv_rank),
        )

    def _attention(self, root: str, attention: AttentionSpec) -> AttentionWeights:
        names, backend = self._names, self._backend
        sinks = None
        if attention.sinks:
            stored = self._tensor(f"{root}.{names.sinks}", attention.num_heads)
            sinks = stored.to(backend.device, torch.promote_types(backend.dtype, torch.float32))
        spec = attention.qk_norm
        if spec is None:
            return AttentionWeights(sinks=sinks)
        heads = {names.query_norm: attention.num_heads, names.key_norm: attention.num_kv_heads}
        query, key = (
            self._norm(f"{root}.{name}", spec.norm, *_norm_shape(count, attention.head_dim, spec))
            for name, count in heads.items()
        )
        return AttentionWeights(query, key, sinks)

    def _mlp(self, root: str, up: str, down: str, layer: LayerSpec, spec: MlpSpec) -> MlpWeights:
        hidden = self._spec.hidden_size
        return MlpWeights(
            spec,
            self._layer_linear(root, up, layer, _up_rows(spec), hidden),
            self._layer_linear(root, down, layer, [hidden], spec.width),
        )

    def _experts(self, root: str, layer: LayerSpec, spec: MoeSpec) -> MoeWeights[Any]:
        names, hidden = self._names, self._spec.hidden_size
        correction = None
        if spec.router.correction:
            stored = self._tensor(f"{root}.{names.correction}", spec.num_experts)
            correction = stored.to(self._backend.device)
        load = self._stacked_experts if names.stacked_experts else self._single_experts
        return MoeWeights(
            spec,
            self._layer_linear(root, "router", layer, [spec.num_experts], hidden),
            correction,
            load(root, "expert_gate_up", layer, _up_rows(spec.expert), hidden),
            load(root, "expert_down", layer, [hidden], spec.expert.width),
        )

    def _single_experts(
        self, root: str, field: str, layer: LayerSpec, rows: Sequence[int], num_columns: int
    ) -> list[Any]:
        """Pack one field of the experts, each of which has its own tensors."""
        assert isinstance(layer.mlp, MoeSpec), layer
        packed = []
        for expert in range(layer.mlp.num_experts):
            names = [f"{root}.{name.format(expert)}" for name in self._names_of(field)]
            packed.append(self._linear(names, rows, num_columns, layer=layer, field=field))
        return packed

    def _stacked_experts(
        self, root: str, field: str, layer: LayerSpec, rows: Sequence[int], num_columns: int
    ) -> list[Any]:
        """Pack one field of the experts, which are stored in one tensor."""
        assert isinstance(layer.mlp, MoeSpec), layer
        (name,) = self._names_of(field)
        num_experts = layer.mlp.num_experts
        stored = self._reader.take_experts(
            self._full(f"{root}.{name}"),
            (num_experts, sum(rows), num_columns),
            transposed=self._names.transposed_experts,
        )
        matrices = (stored.expert(index) for index in range(num_experts))
        return [self._backend.pack_linear([self._converted(field, each, layer)]) for each in matrices]

    # -- single tensors -----------------------------------------------------------------------------------

    def _layer_linear(
        self, root: str, field: str, layer: LayerSpec, rows: Sequence[int], num_columns: int
    ) -> Any:
        """Pack the matrices of one field of TensorNames."""
        names = [f"{root}.{name}" for name in self._names_of(field)]
        return self._linear(names, rows, num_columns, layer=layer, field=field)

    def _linear(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        num_columns: int,
        *,
        layer: LayerSpec | None = None,
        field: str = "",
    ) -> Any:
        """Pack the matrices `names` side by side: [sum(rows), num_columns] together.

        A checkpoint may have one matrix for each of `rows`, or one for all.
        """
        counts = rows if len(names) == len(rows) else [sum(rows)]
        matrices = []
        for name, count in zip(names, counts, strict=True):
            # A conversion may transpose: the shape is checked after it.
            converts = field in self._names.convert
            stored = self._reader.take_linear(self._full(name), None if converts else (count, num_columns))
            matrix = stored if layer is None else self._converted(field, stored, layer)
            if matrix.shape != (count, num_columns):
                raise ModelLoadError(
                    f"the tensor {name!r} has the shape {stored.shape}, which does not fit config.json: the "
                    "files belong to different models. Download the model again."
                )
            matrices.append(matrix)
        return self._backend.pack_linear(matrices)

    def _converted(self, field: str, weights: LinearWeights, layer: LayerSpec) -> LinearWeights:
        convert = self._names.convert.get(field)
        return weights if convert is None else convert(weights, layer)

    def _names_of(self, field: str) -> tuple[str, ...]:
        names = getattr(self._names, field)
        return (names,) if isinstance(names, str) else names

    def _required_norm(self, name: str, spec: NormSpec, *shape: int) -> NormWeights:
        weight = self._tensor(f"{name}.weight", *shape) if spec.weight else torch.ones(shape)
        bias = self._tensor(f"{name}.bias", *shape) if spec.bias else None
        return self._backend.pack_norm(spec, weight, bias)

    def _norm(self, name: str, spec: NormSpec | None, *shape: int) -> NormWeights | None:
        return None if spec is None else self._required_norm(name, spec, *shape)

    def _tensor(self, name: str, *shape: int) -> torch.Tensor:
        return self._reader.take(self._full(name), shape)

    def _full(self, name: str) -> str:
        return self._replaced(name, self._prefix)

    @staticmethod
    def _replaced(name: str, prefix: tuple[str, str]) -> str:
        begin, replacement = prefix
        return replacement + name.removeprefix(begin) if name.startswith(begin) else name


def _up_rows(spec: MlpSpec) -> list[int]:
    """Return the rows of the gate, if there is one, and of the up-projection."""
    return [spec.width] * (2 if spec.gated else 1)


def _norm_shape(num_heads: int, head_dim: int, spec: QkNormSpec) -> tuple[int, ...]:
    if spec.across_heads:
        return (num_heads * head_dim,)
    return (num_heads, head_dim) if spec.per_head else (head_dim,)
