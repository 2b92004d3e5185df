"""The sampler against a plain statement of its definitions, and the promises that resumption rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rows import SamplingRow, sample

from pagefleet.engine.sampling.logit_rules import make_logit_rules
from pagefleet.engine.sampling.philox import philox4x32, uniforms
from pagefleet.engine.sampling.reference_sampler import ReferenceSampler
from pagefleet.engine.sampling.row_sums import block_sums, inverse_cdf, inverse_cdf_in_blocks
from pagefleet.engine.sampling.sampling_batch import GrammarMasks
from pagefleet.engine.sampling.sampling_params import SamplingParams

NUM_PROMPT = 3
BAD_WORDS = [(5,), (1, 2), (2, 1, 7)]
END_IDS = [0, 9]


def row(
    seed: int = 0,
    choice: int = 0,
    position: int = 0,
    tokens: Sequence[int] = (),
    has_bad_words: bool = False,
    **params: Any,
) -> SamplingRow:
    """`tokens`: as many as NUM_PROMPT and `position` say; nothing where no rule looks at them."""
    made = SamplingParams(**params)
    rules = make_logit_rules(made, NUM_PROMPT, BAD_WORDS if has_bad_words else [], END_IDS)
    return SamplingRow(made, seed, choice, position, rules, list(tokens))


def stated_logits(
    logits: np.ndarray, params: SamplingParams, tokens: list[int], bad_words: bool
) -> np.ndarray:
    """The definition of what is done to the logits, one token at a time."""
    prompt, output = tokens[:NUM_PROMPT], tokens[NUM_PROMPT:]
    x = logits.astype(np.float64)
    bias = dict(params.logit_bias)
    for t in range(len(x)):
        if params.allowed_token_ids is not None and t not in params.allowed_token_ids:
            x[t] = -np.inf
        if len(output) < params.min_tokens and t in END_IDS:
            x[t] = -np.inf
        if bad_words and any((*output, t)[-len(word) :] == word for word in BAD_WORDS):
            x[t] = -np.inf
        x[t] += bias.get(t, 0.0)
        if t in prompt or t in output:
            x[t] = x[t] / params.repetition_penalty if x[t] > 0 else x[t] * params.repetition_penalty
        x[t] -= params.frequency_penalty * output.count(t) + params.presence_penalty * (t in output)
    return x


def stated_filter(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """What the filters leave of exp((x - max) / temperature), with Python's own arithmetic."""
    log_weights = [(float(x) - float(logits.max())) / params.temperature for x in logits]
    weights = [math.exp(x) for x in log_weights]
    kept = sorted(range(len(logits)), key=lambda t: (-logits[t], t))
    kept = [t for t in kept if weights[t] >= params.min_p and weights[t] > 0][: params.top_k or None]
    if params.top_p < 1:
        kept = prefix_of_mass(kept, weights, params.top_p)
    if params.typical_p < 1:
        whole = math.fsum(weights[t] for t in kept)
        log_p = {t: log_weights[t] - math.log(whole) for t in kept}
        entropy = -math.fsum(math.exp(x) * x for x in log_p.values())
        # Rounded: equals must stay equal.
        ranking = sorted(kept, key=lambda t: (round(abs(-log_p[t] - entropy), 9), t))
        kept = prefix_of_mass(ranking, weights, params.typical_p)
    result = np.zeros(len(logits))
    result[kept] = [weights[t] for t in kept]
    return result


def prefix_of_mass(ranking: list[int], weights: list[float], share: float) -> list[int]:
    whole, mass, cut = math.fsum(weights[t] for t in ranking), 0.0, 0
    while cut < len(ranking) and mass < share * whole:
        mass += weights[ranking[cut]]
        cut += 1
    return ranking[:cut]


def stated(logits: np.ndarray, row: SamplingRow, bad_words: bool = False) -> int:
    """The definition, one row at a time; the vocabulary's size where nothing may be chosen."""
    logits = stated_logits(logits, row.params, list(row.token_ids), bad_words)
    if logits.max() == -np.inf:
        return len(logits)
    if row.params.temperature == 0:
        return int(np.argmax(logits))
    weights = stated_filter(logits, row.params)
    target = uniforms([row.seed], [row.choice], [row.position])[0] * math.fsum(weights)
    return int(np.flatnonzero(np.cumsum(weights) > target)[0])


filters = {
    "seed": st.integers(0, 2**64 - 1),
    "choice": st.integers(0, 3),
    "temperature": st.sampled_from([0.0, 1e-6, 0.3, 1.0, 5.0]),
    "top_k": st.sampled_from([0, 0, 1, 2, 7, 14, 40, 10_000]),
    "top_p": st.sampled_from([1.0, 0.999, 0.9, 0.5, 1e-9]),
    "min_p": st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    "typical_p": st.sampled_from([1.0, 1.0, 0.95, 0.5, 0.05]),
}
rows = st.builds(row, position=st.integers(0, 2**20), **filters)


@st.composite
def ruled_rows(draw):
    """Rows with every rule there is, and a history that they look at; with or without the test's bad
    words."""
    output = draw(st.lists(st.integers(0, 12), max_size=30))
    tokens = draw(st.lists(st.integers(0, 20), min_size=NUM_PROMPT, max_size=NUM_PROMPT)) + output
    has_bad_words = draw(st.booleans())
    penalties = st.sampled_from([0.0, 0.0, 0.5, -0.7, 2.0])
    some_ids = st.lists(st.integers(0, 30), min_size=1, max_size=12)
    made = row(
        position=len(output),
        tokens=tokens,
        has_bad_words=has_bad_words,
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.3, 0.6])),
        presence_penalty=draw(penalties),
        frequency_penalty=draw(penalties),
        logit_bias=draw(st.dictionaries(st.integers(0, 30), st.sampled_from([-100.0, -1.5, 0.25, 100.0]))),
        allowed_token_ids=draw(st.none() | some_ids),
        min_tokens=draw(st.sampled_from([0, 0, 5, 20])),
        **{name: draw(values) for name, values in filters.items()},
    )
    return made, has_bad_words


@settings(deadline=None, max_examples=50)
@given(st.lists(ruled_rows(), min_size=1, max_size=6), st.integers(0, 10**6))
def test_each_row_with_any_rules_is_what_the_definition_says(batch, logits_seed):
    """Given any mixture of every parameter there is, each row gets the token that the definition names."""
    # Few tokens, so that most of what the rules are about shows.
    logits = np.random.default_rng(logits_seed).normal(0, 3, (len(batch), 40))
    before = torch.from_numpy(logits.copy())
    tokens = sample(before, [each for each, _ in batch], sampler=ReferenceSampler((8,)))
    assert tokens == [stated(logits[i], *batch[i]) for i in range(len(batch))]
    assert torch.equal(before, torch.from_numpy(logits)), "the logits are the caller's"


@settings(deadline=None, max_examples=25)
@given(
    st.lists(rows | ruled_rows(), min_size=2, max_size=12),
    st.integers(0, 10**6),
    st.sampled_from([(700, torch.float64), (5003, torch.bfloat16)]),
)
def test_rules_do_not_depend_on_the_batch_or_on_what_was_counted_before(batch, logits_seed, kind):
    """Together and alone, beside rows that have no rules, from rules that followed the sequence and from
    rules made just now."""
    vocab_size, dtype = kind
    batch = [each if isinstance(each[0], SamplingRow) else (each, False) for each in batch]
    generator = torch.Generator().manual_seed(logits_seed)
    logits = (torch.randn(len(batch), vocab_size, generator=generator, dtype=torch.float64) * 3).to(dtype)
    for each, _ in batch:
        # As a worker would have asked before, token by token, and with a pause.
        for end in range(NUM_PROMPT, len(each.token_ids), 3):
            if each.rules is not None:
                each.rules.counts(each.token_ids[:end])
    together = sample(logits, [each for each, _ in batch])
    anew = [
        each._replace(rules=make_logit_rules(each.params, NUM_PROMPT, BAD_WORDS if bad else [], END_IDS))
        for each, bad in batch
    ]
    assert [sample(logits[i : i + 1], [anew[i]])[0] for i in range(len(batch))] == together


@settings(deadline=None, max_examples=15)
@given(st.lists(ruled_rows(), min_size=1, max_size=6), st.integers(0, 10**6), st.integers(1, 299))
def test_a_bit_mask_comes_before_everything_else(batch, seed, num_allowed):
    """Given packed masks for some rows, these choose as if they were `allowed_token_ids` too; the others are
    free."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (len(batch), 301))
    masked = np.arange(0, len(batch), 2)
    packed = np.zeros((len(masked), 10), dtype=np.int32)
    expected = logits.copy()
    for index, mask in zip(masked, packed, strict=True):
        ids = rng.choice(301, num_allowed, replace=False)
        bits = np.zeros(320, dtype=np.uint8)
        bits[ids] = 1
        mask[:] = np.packbits(bits, bitorder="little").view(np.int32)
        expected[index] = -np.inf
        expected[index, ids] = logits[index, ids]
    masks = GrammarMasks(masked, packed)
    tokens = sample(torch.from_numpy(logits), [each for each, _ in batch], masks)
    assert tokens == [stated(expected[i], *batch[i]) for i in range(len(batch))]


MIXTURE: list[dict[str, Any]] = [
    {},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.03},
    {"typical_p": 0.7},
    {"top_k": 70, "top_p": 0.95, "min_p": 0.01},
    {"top_p": 0.98, "typical_p": 0.95},
    {"top_k": 400, "typical_p": 0.6},
]
# fmt: off
TOKENS_OF_THE_MIXTURE = [
    219, 1421, 894, 2820, 1323, 2077, 1843, 1309, 17, 2244, 2255, 1200, 1267, 41, 2596, 608, 1796,
    1945, 1181, 1192, 2146, 737, 1514, 1239, 2425, 740, 294, 2865, 232, 2518, 127, 2459, 2604, 137,
    1657, 1108, 1904, 1689, 1894, 2783, 2597, 1976, 79, 398, 1058, 2529, 1473, 882, 2630, 1941,
    1327, 1218, 2782, 1887, 788, 1742, 185, 2020, 787, 1809, 2396, 521, 965, 1205, 1291, 408, 632,
    1514, 2663, 923, 2621, 2506, 72, 2084, 2903, 2533, 1149, 149, 2897, 994, 256, 2272, 2108, 149,
    1468, 609, 2185, 2162, 952, 512, 258, 2088, 1191, 987, 2219, 2646,
]
# fmt: on
"""Drawn by the sampler that looked at one row after the other (before decision 0038)."""


@pytest.mark.parametrize("on_host", [True, False])
def test_a_mixture_gets_the_tokens_that_were_drawn_row_by_row(on_host):
    """Given flat and steep logits, and all filters: on a CPU and by the methods for a device."""
    num_rows = len(TOKENS_OF_THE_MIXTURE)
    steepness = np.linspace(0.2, 4, num_rows, dtype=np.float32)[:, None]
    logits = np.random.default_rng(0).normal(0, 1, (num_rows, 3000)).astype(np.float32) * steepness
    batch = [row(i * i, i % 3, i, temperature=i % 5 * 0.4, **MIXTURE[i % 8]) for i in range(num_rows)]
    sampler = ReferenceSampler(on_host=on_host)
    assert sample(torch.from_numpy(logits), batch, sampler=sampler) == TOKENS_OF_THE_MIXTURE


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 10**6))
def test_equals_are_ranked_by_their_ids(batch, logits_seed):
    """Given logits with hundreds of equals, every row gets the token that the definition names."""
    logits = np.random.default_rng(logits_seed).normal(0, 1, (len(batch), 300)).round()
    tokens = sample(torch.from_numpy(logits), batch, sampler=ReferenceSampler((16,)))
    assert tokens == [stated(logits[i], batch[i]) for i in range(len(batch))]


@settings(deadline=None, max_examples=40)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 10**6), st.sampled_from([0.01, 1, 4]))
def test_looking_at_few_tokens_gives_the_same_token_as_ranking_all(batch, logits_seed, spread):
    """bfloat16 logits are full of equals, just where a partial ranking could cut wrongly."""
    generator = torch.Generator().manual_seed(logits_seed)
    logits = (torch.randn(len(batch), 2000, generator=generator) * spread).bfloat16()
    everything = sample(logits, batch, sampler=ReferenceSampler(()))
    assert sample(logits, batch, sampler=ReferenceSampler((8, 64))) == everything
    assert sample(logits, batch) == everything
    assert sample(logits, batch, sampler=ReferenceSampler((8,), on_host=False)) == everything


@settings(deadline=None, max_examples=30)
@given(st.lists(rows, min_size=2, max_size=70), st.integers(0, 10**6))
def test_a_row_does_not_depend_on_its_batch(batch, logits_seed):
    generator = torch.Generator().manual_seed(logits_seed)
    logits = torch.randn(len(batch), 700, generator=generator)
    together = sample(logits, batch)
    alone = [sample(logits[i : i + 1], [batch[i]])[0] for i in range(len(batch))]
    assert together == alone


@pytest.mark.parametrize("num_draws", [4_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.5, "typical_p": 0.7},
        {"temperature": 1.2, "repetition_penalty": 1.8, "presence_penalty": 0.5, "frequency_penalty": -0.4},
        {"logit_bias": {3: 2.5, 4: -100, 11: -1.0}, "top_p": 0.95},
        {
            "temperature": 3.0,
            "allowed_token_ids": [1, 4, 6, 8, 11, 39],
            "min_tokens": 20_001,
            "max_tokens": 20_001,
        },
    ],
    ids=str,
)
def test_draws_have_the_stated_distribution(params, num_draws):
    """Many draws, one a position, against the filtered distribution by chi-square."""
    vocab_size = 40
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(3)) * 1.5
    made = row(tokens=[7, 8, 9, *range(0, 40, 2), *range(0, 40, 3)], **params)
    draws = sample(
        logits.expand(num_draws, -1), [made._replace(seed=3, position=i) for i in range(num_draws)]
    )
    weights = stated_filter(
        stated_logits(logits.numpy(), made.params, list(made.token_ids), False), made.params
    )
    expected = weights / weights.sum() * num_draws
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


def test_seed_choice_and_position_each_change_the_draws():
    def draws(**which: int) -> list[int]:
        batch = [row(**({"seed": 5, "position": i} | which)) for i in range(64)]
        return sample(torch.zeros(64, 1000), batch)

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
    batch = [row(position=position, top_k=20) for position in range(100)]
    assert set(sample(logits.expand(len(batch), -1), batch)) == set(first)


def test_greedy_takes_the_first_of_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert sample(logits, [row(temperature=0.0)]) == [1]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 1300), st.integers(0, 10**6), st.booleans())
def test_both_inversions_find_the_first_sum_above(num_tokens, seed, has_holes):
    """Given weights that are counts, whose sums are exact in any order, both name the same token; and at the
    ends of the range they name one that weighs something."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 2 if has_holes else 9, (7, num_tokens)).astype(np.float64)
    weights[:, rng.integers(num_tokens)] += 1
    uniform = np.array([0.0, 2.0**-53, 0.25, 0.5, 0.75, 1 - 2.0**-53, rng.random()])
    sums = weights.cumsum(axis=1)
    expected = [int(np.flatnonzero(row > u * row[-1])[0]) for row, u in zip(sums, uniform, strict=True)]

    def by_blocks(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return inverse_cdf_in_blocks(
            block_sums(weights), uniform, num_tokens, lambda columns: weights.gather(1, columns)
        )

    for find in (inverse_cdf, by_blocks):
        assert find(torch.from_numpy(weights), torch.from_numpy(uniform)).tolist() == expected
        found = find(torch.from_numpy(weights).float() / 3, torch.from_numpy(uniform)).tolist()
        assert all(weights[i, token_id] > 0 for i, token_id in enumerate(found))


def test_a_temperature_next_to_nothing_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 50.0, 1.0]])
    assert sample(logits, [row(temperature=1e-300)]) == [2]


def test_useless_logits_harm_only_their_own_row():
    """Given rows of NaN and of -inf, they yield an id outside of the vocabulary; their neighbour is fine."""
    logits = torch.zeros(4, 10)
    logits[0, 3] = math.nan
    logits[1] = -math.inf
    logits[2, 7] = math.nan
    logits[3, 4] = 9.0
    batch = [row(temperature=0.0), row(), row(top_p=0.5, top_k=3), row(temperature=0.01)]
    assert sample(logits, batch) == [10, 10, 10, 4]


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
