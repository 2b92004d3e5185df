"""The reference backend's operations against their definitions, written out densely."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.engine.backends.base import AttentionWeights, RaggedBatch
from pagefleet.engine.backends.grouping import group_by_length
from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.model_spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

BLOCK_SIZE, NUM_BLOCKS = 4, 64
ROPE = RopeSpec(torch.tensor([1.0, 0.3, 0.1, 0.01]))
SPEC = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=8, scale=8**-0.5, rope=ROPE)


def model_of(*attentions: AttentionSpec) -> ModelSpec:
    return ModelSpec(
        vocab_size=1,
        hidden_size=1,
        layers=tuple(LayerSpec(each, MlpSpec(width=1)) for each in attentions),
        final_norm=None,
        tied=True,
        max_model_len=100,
        dtype=torch.float32,
    )


MODEL = model_of(SPEC, SPEC)
CPU = torch.device("cpu")


def new_backend(dtype: torch.dtype = torch.float64) -> ReferenceBackend:
    backend = ReferenceBackend(CPU, dtype)
    backend.allocate_kv_cache(MODEL, [NUM_BLOCKS], BLOCK_SIZE)
    return backend


class Text:
    """A sequence of random queries, keys and values that is computed piece by piece."""

    def __init__(self, num_tokens: int, blocks: list[int], generator: torch.Generator) -> None:
        heads = SPEC.num_heads + 2 * SPEC.num_kv_heads
        self.qkv = torch.randn(num_tokens, heads * SPEC.head_dim, generator=generator, dtype=torch.float64)
        self.blocks = blocks
        self.num_done = 0


def attend(backend: ReferenceBackend, pieces: list[tuple[Text, int]], layer: int = 1) -> list[torch.Tensor]:
    """One step that computes the next n tokens of each text: their attention outputs."""
    width = max(len(text.blocks) for text, _ in pieces)
    batch = RaggedBatch(
        token_ids=np.zeros(sum(n for _, n in pieces), dtype=np.int64),
        query_lens=np.array([n for _, n in pieces]),
        context_lens=np.array([text.num_done for text, _ in pieces]),
        block_tables=np.array([[text.blocks + [0] * (width - len(text.blocks)) for text, _ in pieces]]),
    )
    plan = backend.begin_step(batch)
    qkv = torch.cat([text.qkv[text.num_done : text.num_done + n] for text, n in pieces]).to(backend.dtype)
    output = backend.attend(plan, layer, qkv, AttentionWeights())
    for text, n in pieces:
        text.num_done += n
    return list(output.split([n for _, n in pieces]))


def dense_attention(text: Text) -> torch.Tensor:
    """Softmax attention over the whole text at once, with complex numbers for the rotation."""
    heads = text.qkv.view(len(text.qkv), -1, SPEC.head_dim)
    angles = torch.outer(torch.arange(len(heads)).float(), ROPE.inv_freq)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)[:, None]
    first, second = heads[:, : SPEC.num_heads + SPEC.num_kv_heads].chunk(2, dim=-1)
    turned = torch.complex(first, second) * turn
    rotated = torch.cat([turned.real, turned.imag], dim=-1)
    query, key = rotated.split([SPEC.num_heads, SPEC.num_kv_heads], dim=1)
    value = heads[:, SPEC.num_heads + SPEC.num_kv_heads :]
    group = SPEC.num_heads // SPEC.num_kv_heads
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(SPEC.head_dim)
    scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(len(heads), -1)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_way_of_cutting_texts_into_steps_gives_dense_attention(data):
    """Given texts with scattered blocks, computed in random pieces side by side, each output is exact."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    texts = [Text(n, [free.pop() for _ in range(-(-n // BLOCK_SIZE))], generator) for n in lengths]
    backend, outputs = new_backend(), {text: [] for text in texts}
    while unfinished := [text for text in texts if text.num_done < len(text.qkv)]:
        pieces = [
            (text, data.draw(st.sampled_from([1, 1, min(7, left), left])))
            for text in unfinished
            for left in [len(text.qkv) - text.num_done]
        ]
        for (text, _), output in zip(pieces, attend(backend, pieces), strict=True):
            outputs[text].append(output)
    for text in texts:
        # The angles are float32 by design, which the definition above follows.
        torch.testing.assert_close(torch.cat(outputs[text]), dense_attention(text), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_narrow_dtypes_stay_close_to_float64(dtype, tolerance):
    texts = [
        Text(n, list(range(i * 10, i * 10 + 10)), torch.Generator().manual_seed(i))
        for i, n in enumerate((37, 9, 1))
    ]
    backend = new_backend(dtype)
    outputs = attend(backend, [(text, len(text.qkv) - 1) for text in texts[:2]])
    last = attend(backend, [(text, 1) for text in texts])
    for text, output in zip(texts, last, strict=True):
        torch.testing.assert_close(
            output.double(), dense_attention(text)[-1:], rtol=tolerance, atol=tolerance
        )
    torch.testing.assert_close(
        outputs[0].double(), dense_attention(texts[0])[:-1], rtol=tolerance, atol=tolerance
    )


def test_an_encoders_tokens_attend_to_all_tokens_of_their_text():
    """Three texts in one step, without a causal mask and without a KV cache."""
    backend = ReferenceBackend(CPU, torch.float64)
    encoder = replace(SPEC, causal=False, rope=None)
    model = model_of(encoder)
    backend.allocate_kv_cache(model, [1], BLOCK_SIZE)
    assert backend.kv_bytes_per_block(model, BLOCK_SIZE) == [0]
    texts = [Text(n, [0], torch.Generator().manual_seed(n)) for n in (20, 1, 7)]
    lens = np.array([len(text.qkv) for text in texts])
    blocks = np.zeros((1, 3, 5), dtype=np.int64)
    batch = RaggedBatch(np.zeros(lens.sum(), dtype=np.int64), lens, np.zeros_like(lens), blocks)
    qkv = torch.cat([text.qkv for text in texts])
    output = backend.attend(backend.begin_step(batch), 0, qkv, AttentionWeights())
    for text, part in zip(texts, output.split(lens.tolist()), strict=True):
        heads = text.qkv.view(len(text.qkv), -1, SPEC.head_dim)
        query, key, value = heads.split([SPEC.num_heads, SPEC.num_kv_heads, SPEC.num_kv_heads], dim=1)
        key, value = (each.repeat_interleave(3, dim=1) for each in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / math.sqrt(SPEC.head_dim)
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(len(heads), -1)
        torch.testing.assert_close(part, expected)


def test_layers_do_not_share_their_cache():
    """Given a text written to layer 0, writing another to layer 1 at the same place leaves it alone."""
    backend = new_backend()
    text, other = (Text(9, [3, 1, 2], torch.Generator().manual_seed(i)) for i in (1, 2))
    attend(backend, [(text, 8)], layer=0)
    attend(backend, [(other, 8)], layer=1)
    [output] = attend(backend, [(text, 1)], layer=0)
    torch.testing.assert_close(output, dense_attention(text)[-1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 5, 200])
@pytest.mark.parametrize("with_bias", [True, False])
def test_packed_linears_compute_the_matrices_side_by_side(dtype, num_rows, with_bias):
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(n, 48, generator=generator) for n in (32, 16)]
    biases = [torch.randn(n, generator=generator) for n in (32, 16)]
    x = torch.randn(num_rows, 48, generator=generator)
    backend = new_backend(dtype)
    parts = zip(matrices, biases if with_bias else (None, None), strict=True)
    packed = backend.pack_linear([LinearWeights.of(*part) for part in parts])
    expected = x.double() @ torch.cat(matrices).double().T + (torch.cat(biases).double() if with_bias else 0)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(
        backend.linear(x.to(dtype), packed).double(), expected, rtol=0.02, atol=tolerance
    )


def test_gated_linear_is_silu_of_the_gate_times_up():
    generator = torch.Generator().manual_seed(0)
    gate, up, x = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (20, 20, 3))
    backend = new_backend()
    output = backend.gated_linear(
        x, backend.pack_linear([LinearWeights.of(gate), LinearWeights.of(up)]), "silu"
    )
    torch.testing.assert_close(output, F.silu(x @ gate.T) * (x @ up.T))


def test_norm_of_a_sum_returns_the_sum_as_the_next_residual():
    hidden, residual, weight = torch.randn(
        3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    backend = new_backend()
    normed, total = backend.add_norm(hidden, residual, backend.pack_norm(NormSpec(1e-5), weight[0], None))
    torch.testing.assert_close(total, hidden + residual)
    scale = (total.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(normed, total / scale * weight[0])


def test_a_block_takes_as_many_bytes_as_are_allocated():
    backend = new_backend(torch.bfloat16)
    allocated = sum(layer.numel() * layer.element_size() for layer in backend._pages._layers)
    assert sum(backend.kv_bytes_per_block(MODEL, BLOCK_SIZE)) * NUM_BLOCKS == allocated


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=7), st.integers(0, 40))
def test_grouping_finds_the_cheapest_partition(lengths, group_cost):
    def cost(groups: list[list[int]]) -> int:
        return sum(len(group) * max(group) + group_cost for group in groups)

    array = np.array(lengths, dtype=np.int64)
    groups = group_by_length(array, group_cost)
    assert sorted(itertools.chain.from_iterable(group.tolist() for group in groups)) == list(
        range(len(lengths))
    )
    ordered = sorted(lengths)
    cuts = itertools.product([False, True], repeat=max(0, len(lengths) - 1))
    cheapest = min((cost(_split(ordered, cut)) for cut in cuts), default=0)
    assert cost([array[group].tolist() for group in groups]) == cheapest


def _split(items: list[int], cuts: tuple[bool, ...]) -> list[list[int]]:
    if not items:
        return []
    groups = [[items[0]]]
    for item, cut in zip(items[1:], cuts, strict=True):
        if cut:
            groups.append([])
        groups[-1].append(item)
    return groups
