"""The CPU backend against the reference in float64, and against itself: a token's attention is the same in
any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagefleet.engine.backends.base import AttentionWeights, Backend, NormWeights, RaggedBatch
from pagefleet.engine.backends.cpu.backend import CpuBackend
from pagefleet.engine.backends.cpu.native import Library
from pagefleet.engine.backends.reference import ReferenceBackend
from pagefleet.engine.files.linear_weights import LinearWeights
from pagefleet.engine.model_spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    QkNormSpec,
    QueryGrowthSpec,
    RopeSpec,
)

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 1e-6}
"""Of attention outputs, with a standard deviation of about 1. The angles are float32 for every dtype."""
NUM_BLOCKS = 160

BASE = AttentionSpec(num_heads=6, num_kv_heads=2, head_dim=16, scale=0.25)


def rope_of(size: int, **options) -> RopeSpec:
    return RopeSpec(torch.linspace(1, 0.01, size // 2), **options)


SPECS = {
    "plain": BASE,
    "rope": replace(BASE, rope=rope_of(16)),
    "partial rope": replace(BASE, rope=rope_of(8, start=4, interleaved=True, scaling=1.2)),
    "window": replace(BASE, window=21, rope=rope_of(16)),
    # Longer than a piece of the context.
    "long window": replace(BASE, window=150, rope=rope_of(16)),
    "cap": replace(BASE, soft_cap=2.0),
    "sinks": replace(BASE, sinks=True, window=5),
    "short values": replace(BASE, head_dim=24, value_dim=8),
    "odd sizes": replace(BASE, num_heads=7, num_kv_heads=1, head_dim=13),
    "one group": replace(BASE, num_heads=3, num_kv_heads=3, head_dim=64),
    "large": replace(BASE, num_heads=8, num_kv_heads=2, head_dim=128, rope=rope_of(128)),
    "many heads": replace(BASE, num_heads=71, num_kv_heads=1, head_dim=80),
    "growth": replace(BASE, query_growth=QueryGrowthSpec(beta=0.5, length=7)),
    "norms": replace(BASE, rope=rope_of(16), qk_norm=QkNormSpec(NormSpec(1e-5))),
    "centred norms": replace(BASE, qk_norm=QkNormSpec(NormSpec(1e-5, centred=True, bias=True))),
    "norms of heads": replace(BASE, qk_norm=QkNormSpec(NormSpec(1e-5, centred=True), per_head=True)),
    "joint norms": replace(BASE, qk_norm=QkNormSpec(NormSpec(1e-5), across_heads=True)),
}


@pytest.fixture(scope="module")
def library(kernels: Library) -> Library:
    return kernels


def model_of(spec: AttentionSpec) -> ModelSpec:
    return ModelSpec(
        vocab_size=1,
        hidden_size=1,
        layers=(LayerSpec(spec, MlpSpec(width=1)),),
        final_norm=None,
        tied=True,
        max_model_len=10_000,
        dtype=torch.float32,
    )


def qk_weights(spec: AttentionSpec, backend: Backend, generator: torch.Generator) -> AttentionWeights:
    """Random norms and sinks, the same for every backend."""

    def norm(num_heads: int) -> NormWeights | None:
        if spec.qk_norm is None:
            return None
        shape = (spec.head_dim,)
        if spec.qk_norm.across_heads:
            shape = (num_heads * spec.head_dim,)
        if spec.qk_norm.per_head:
            shape = (num_heads, spec.head_dim)
        weight, bias = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
        return backend.pack_norm(spec.qk_norm.norm, weight, bias if spec.qk_norm.norm.bias else None)

    sinks = torch.randn(spec.num_heads, generator=generator).to(
        torch.promote_types(backend.dtype, torch.float32)
    )
    return AttentionWeights(norm(spec.num_heads), norm(spec.num_kv_heads), sinks if spec.sinks else None)


@dataclass(eq=False)
class Text:
    """A sequence whose attention is computed piece by piece."""

    qkv: torch.Tensor
    blocks: list[int]
    num_done: int = 0
    outputs: list[torch.Tensor] = field(default_factory=list)


class Batches:
    """A backend with a cache, which computes texts in steps."""

    def __init__(self, backend: Backend, spec: AttentionSpec, block_size: int, seed: int = 0) -> None:
        self.backend, self.spec, self.block_size = backend, spec, block_size
        backend.allocate_kv_cache(model_of(spec), [NUM_BLOCKS], block_size)
        self.weights = qk_weights(spec, backend, torch.Generator().manual_seed(seed))
        self._free = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(seed)).tolist()

    def text(self, num_tokens: int, seed: int) -> Text:
        spec, generator = self.spec, torch.Generator().manual_seed(seed)
        width = (spec.num_heads + spec.num_kv_heads) * spec.head_dim
        width += spec.num_kv_heads * (spec.value_dim or spec.head_dim)
        # Rounded, so that every backend computes with the same numbers.
        qkv = torch.randn(num_tokens, width, generator=generator).bfloat16().to(self.backend.dtype)
        return Text(qkv, [self._free.pop() for _ in range(-(-num_tokens // self.block_size))])

    def step(self, pieces: list[tuple[Text, int]]) -> None:
        """Compute the next n tokens of each text."""
        if not pieces:
            return
        width = max(len(text.blocks) for text, _ in pieces)
        batch = RaggedBatch(
            token_ids=np.zeros(sum(n for _, n in pieces), dtype=np.int64),
            query_lens=np.array([n for _, n in pieces]),
            context_lens=np.array([text.num_done for text, _ in pieces]),
            block_tables=np.array([[text.blocks + [0] * (width - len(text.blocks)) for text, _ in pieces]]),
        )
        qkv = torch.cat([text.qkv[text.num_done : text.num_done + n] for text, n in pieces])
        output = self.backend.attend(self.backend.begin_step(batch), 0, qkv, self.weights)
        for (text, n), part in zip(pieces, output.split([n for _, n in pieces]), strict=True):
            text.outputs.append(part)
            text.num_done += n


def whole(
    backend: Backend, spec: AttentionSpec, lengths: list[int], block_size: int, seed: int
) -> list[torch.Tensor]:
    """Compute each text alone, in one step."""
    batches, outputs = Batches(backend, spec, block_size, seed), []
    for index, length in enumerate(lengths):
        text = batches.text(length, seed + index)
        batches.step([(text, length)])
        outputs += text.outputs
    return outputs


def in_pieces(
    backend: Backend, spec: AttentionSpec, lengths: list[int], block_size: int, seed: int, data: st.DataObject
) -> list[torch.Tensor]:
    """Compute all texts side by side, in random pieces."""
    batches = Batches(backend, spec, block_size, seed)
    texts = [batches.text(length, seed + index) for index, length in enumerate(lengths)]
    while unfinished := [text for text in texts if text.num_done < len(text.qkv)]:
        lefts = [len(text.qkv) - text.num_done for text in unfinished]
        sizes = [data.draw(st.sampled_from([1, min(7, left), min(45, left), left])) for left in lefts]
        batches.step(list(zip(unfinished, sizes, strict=True)))
    return [torch.cat(text.outputs) for text in texts]


@pytest.mark.parametrize("name", SPECS)
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_attention_equals_the_reference_in_float64(library, name, data):
    """Given texts of any length in random pieces, side by side."""
    dtype = data.draw(st.sampled_from(DTYPES))
    target = data.draw(st.sampled_from(library.targets))
    block_size = data.draw(st.sampled_from([16, 4, 32, 20]))
    lengths = data.draw(st.lists(st.integers(1, 100) | st.just(block_size), min_size=1, max_size=4))
    seed, spec = data.draw(st.integers(0, 1000)), SPECS[name]
    found = in_pieces(CpuBackend(dtype, library, target), spec, lengths, block_size, seed, data)
    expected = whole(ReferenceBackend(CPU, torch.float64), spec, lengths, block_size, seed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rope", "long window", "sinks"])
@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_token_is_the_same_in_any_batch(library, threads, name, dtype, data):
    """Given texts alone in one step, and in random pieces side by side, 1 or 2 threads: equal bit for bit."""
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=2, max_size=4))
    backend = CpuBackend(dtype, library, data.draw(st.sampled_from(library.targets)))
    alone = whole(backend, SPECS[name], lengths, 16, 3)
    threads(data.draw(st.sampled_from([1, 2])))
    found = in_pieces(backend, SPECS[name], lengths, 16, 3, data)
    for one, other in zip(found, alone, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["rope", "long window", "sinks"])
def test_a_token_of_a_long_context_is_the_same(library, threads, name, dtype):
    """Given a text of several spans of the context, in one step, in chunks and token by token, when the
    spans are split over the threads: equal bit for bit."""
    backend, length = CpuBackend(dtype, library), 2100
    [alone] = whole(backend, SPECS[name], [length], 16, 3)
    for num_threads in (1, 2):
        threads(num_threads)
        batches = Batches(backend, SPECS[name], 16, 3)
        text = batches.text(length, 3)
        for size in (1000, 53, *[1] * 5, 1010, *[1] * 32):
            batches.step([(text, size)])
        assert torch.equal(torch.cat(text.outputs), alone)


@pytest.mark.parametrize("length", [1, 16, 64, 509, 1024, 1025, 2100])
def test_the_last_token_of_a_context_of_this_length(library, length):
    """A context that ends with a block, a piece or a span, or one token later: a prompt, then a decode."""
    spec = replace(BASE, rope=rope_of(16))
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for backend in (CpuBackend(dtype, library), ReferenceBackend(CPU, torch.float64)):
            batches = Batches(backend, spec, 16)
            text = batches.text(length, seed=5)
            batches.step([(text, length - 1)] if length > 1 else [])
            batches.step([(text, 1)])
            found.append(text.outputs[-1].double())
        torch.testing.assert_close(*found, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_block_takes_as_many_bytes_as_are_allocated(library):
    for spec in SPECS.values():
        for dtype in DTYPES:
            backend = CpuBackend(dtype, library)
            backend.allocate_kv_cache(model_of(spec), [3], 20)
            [layer] = backend._layers
            allocated = layer.keys.nbytes + layer.values.nbytes
            assert backend.kv_bytes_per_block(model_of(spec), 20) == [allocated // 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 16, 37, 576])
@pytest.mark.parametrize(
    "norm", [NormSpec(1e-5), NormSpec(1e-5, unit_offset=True), NormSpec(1e-6, centred=True, bias=True)]
)
def test_norms_equal_the_reference(library, dtype, size, norm):
    generator = torch.Generator().manual_seed(size)
    hidden, residual = (torch.randn(9, size, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(size, generator=generator) for _ in range(2))
    reference, bias = ReferenceBackend(CPU, torch.float64), bias if norm.bias else None
    expected = reference.pack_norm(norm, weight, bias)
    for target in library.targets:
        backend = CpuBackend(dtype, library, target)
        packed = backend.pack_norm(norm, weight, bias)
        tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-5}[dtype]
        found = backend.add_norm(hidden, residual, packed, 0.5)
        total = residual.double() + 0.5 * hidden.double()
        torch.testing.assert_close(found.residual.double(), total, rtol=tolerance, atol=tolerance)
        # The norm is that of the rounded sum.
        for normed, of in ((found.hidden, found.residual), (backend.norm(hidden, packed), hidden)):
            torch.testing.assert_close(
                normed.double(), reference.norm(of.double(), expected), rtol=tolerance, atol=tolerance
            )
        # A row does not depend on the others.
        assert torch.equal(backend.norm(hidden[4:5], packed), backend.norm(hidden, packed)[4:5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "function"), [("silu", F.silu), ("gelu_new", lambda x: F.gelu(x, approximate="tanh"))]
)
def test_gates_equal_torch(library, dtype, name, function):
    generator = torch.Generator().manual_seed(0)
    for width in (1, 16, 200):
        gate, up, x = (torch.randn(n, 12, generator=generator).to(dtype) for n in (width, width, 5))
        for target in library.targets:
            backend = CpuBackend(dtype, library, target)
            packed = backend.pack_linear([LinearWeights.of(gate), LinearWeights.of(up)])
            both = backend.linear(x, packed).double()
            expected = function(both[:, :width]) * both[:, width:]
            tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-6}[dtype]
            torch.testing.assert_close(
                backend.gated_linear(x, packed, name).double(), expected, rtol=tolerance, atol=tolerance
            )
