"""The sampler against a plain statement of its definitions, and the promises that resumption rests on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.engine.philox import philox4x32, uniforms
from pagefleet.engine.sampler import Sampler, SamplingRow, _invert
from pagefleet.engine.sampling_params import SamplingParams


def row(seed: int = 0, choice: int = 0, position: int = 0, **params: float) -> SamplingRow:
    return SamplingRow(SamplingParams(**params), seed, choice, position)


def stated(logits: np.ndarray, row: SamplingRow) -> int:
    """The definition, one row at a time, with Python's own arithmetic."""
    params = row.params
    ranking = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    if params.temperature == 0:
        return ranking[0]
    weights = [math.exp((float(x) - float(logits.max())) / params.temperature) for x in logits]
    kept = ranking[: params.top_k or None]
    if params.top_p < 1:
        whole, mass, cut = math.fsum(weights[i] for i in kept), 0.0, 0
        while cut < len(kept) and mass < params.top_p * whole:
            mass += weights[kept[cut]]
            cut += 1
        kept = kept[:cut]
    kept = sorted(i for i in kept if weights[i] >= params.min_p * max(weights))
    target = uniforms([row.seed], [row.choice], [row.position])[0] * math.fsum(weights[i] for i in kept)
    mass = 0.0
    for token_id in kept:
        mass += weights[token_id]
        if mass > target:
            return token_id
    raise AssertionError(target)


rows = st.builds(
    row,
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 3),
    position=st.integers(0, 2**20),
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 14, 40, 10_000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 10**6), st.booleans())
def test_each_row_is_what_the_definition_says(batch, logits_seed, with_ties):
    """Given any mixture of parameters, every row gets the token that the definition names."""
    logits = np.random.default_rng(logits_seed).normal(0, 3, (len(batch), 300)).astype(np.float32)
    if with_ties:
        logits = (logits / 3).round()
    tokens = Sampler(num_candidates=(16,)).sample(torch.from_numpy(logits), batch)
    assert tokens == [stated(logits[i], batch[i]) for i in range(len(batch))]


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 10**6), st.sampled_from([0.01, 1, 4]))
def test_looking_at_few_tokens_gives_the_same_token_as_ranking_all(batch, logits_seed, spread):
    """bfloat16 logits are full of equals, just where a partial ranking could cut wrongly."""
    generator = torch.Generator().manual_seed(logits_seed)
    logits = (torch.randn(len(batch), 2000, generator=generator) * spread).bfloat16()
    everything = Sampler(num_candidates=()).sample(logits, batch)
    assert Sampler(num_candidates=(8, 64)).sample(logits, batch) == everything
    assert Sampler().sample(logits, batch) == everything


@settings(deadline=None, max_examples=30)
@given(st.lists(rows, min_size=2, max_size=70), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_batch(batch, logits_seed):
    generator = torch.Generator().manual_seed(logits_seed)
    logits = torch.randn(len(batch), 700, generator=generator)
    together = Sampler().sample(logits, batch)
    alone = [Sampler().sample(logits[i : i + 1], [batch[i]])[0] for i in range(len(batch))]
    assert together == alone


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_draws_have_the_stated_distribution(params):
    """20,000 draws, one a position, against the filtered distribution by chi-square."""
    num_draws, vocab_size = 20_000, 40
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(3)) * 1.5
    draws = Sampler().sample(
        logits.expand(num_draws, -1), [row(seed=7, position=i, **params) for i in range(num_draws)]
    )
    expected = filtered(logits.double().numpy(), SamplingParams(**params)) * num_draws
    observed = np.bincount(draws, minlength=vocab_size)
    assert observed[expected == 0].sum() == 0, "a token that the filters removed was drawn"
    # Cells that expect less than 5 are pooled, as the test's approximation asks.
    small = (expected > 0) & (expected < 5)
    cells = [(observed[i], expected[i]) for i in np.flatnonzero(expected >= 5)]
    if expected[small].sum() >= 5:
        cells.append((observed[small].sum(), expected[small].sum()))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the 99.9 % quantile.
    bar = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bar, (statistic, bar)


def filtered(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / params.temperature)
    order = np.argsort(-logits)
    kept = order[: params.top_k or None]
    shares = weights[kept] / weights[kept].sum()
    kept = kept[np.cumsum(shares) - shares < params.top_p]
    kept = kept[weights[kept] >= params.min_p * weights.max()]
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def test_seed_choice_and_position_each_change_the_draws():
    def draws(**which: int) -> list[int]:
        batch = [row(**({"seed": 5, "position": i} | which)) for i in range(64)]
        return Sampler().sample(torch.zeros(64, 1000), batch)

    base = draws()
    assert draws() == base
    assert draws(seed=6) != base
    assert draws(seed=5 + 2**32) != base, "the seed's upper half counts"
    assert draws(choice=1) != base
    assert len(set(base)) > 50


@pytest.mark.parametrize("vocab_size", [300, 2000, 50_000])
def test_a_cut_among_equals_keeps_the_first_of_them(vocab_size):
    """Given three logits spread over a vocabulary, top_k cuts among thousands of equals, by ascending id."""
    logits = torch.randint(0, 3, (1, vocab_size), generator=torch.Generator().manual_seed(0)).bfloat16()
    first = torch.nonzero(logits[0] == 2).flatten()[:20].tolist()
    batch = [row(position=position, top_k=20) for position in range(300)]
    assert set(Sampler().sample(logits.expand(len(batch), -1), batch)) == set(first)


def test_greedy_takes_the_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert Sampler().sample(logits, [row(temperature=0.0)]) == [1]


def test_a_draw_of_zero_skips_what_the_filters_removed():
    weights = torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64)
    assert _invert(weights, torch.zeros(1, dtype=torch.float64)).tolist() == [1]


def test_a_temperature_next_to_nothing_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 50.0, 1.0]])
    assert Sampler().sample(logits, [row(temperature=1e-300)]) == [2]


def test_useless_logits_harm_only_their_own_row():
    """Given rows of NaN and of -inf, they yield an id outside of the vocabulary; their neighbour is fine."""
    logits = torch.zeros(4, 10)
    logits[0, 3] = math.nan
    logits[1] = -math.inf
    logits[2, 7] = math.nan
    logits[3, 4] = 9.0
    batch = [row(temperature=0.0), row(), row(top_p=0.5, top_k=3), row(temperature=0.01)]
    assert Sampler().sample(logits, batch) == [10, 10, 10, 4]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_reproduces_its_authors_known_answers(counter, key, expected):
    def words(values: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.array([value], dtype=np.uint64) for value in values)

    assert tuple(int(word[0]) for word in philox4x32(words(counter), words(key))) == expected
