"""row_max, RankedRows and keep_top_mass, compared with a sort of the whole row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagefleet.engine.sampling import top_tokens
from pagefleet.engine.sampling.scratch import Scratch
from pagefleet.engine.sampling.top_tokens import RankedRows, keep_top_mass, row_max

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def some_rows(num_rows: int, vocab_size: int, seed: int, spread: float) -> torch.Tensor:
    """With equals where the spread is small, and some -inf."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(num_rows, vocab_size, generator=generator) * spread).round()
    return values.masked_fill(torch.rand(values.shape, generator=generator) < 0.1, -torch.inf)


def ranking_of(row: torch.Tensor) -> list[int]:
    values = row.tolist()
    return sorted(range(len(values)), key=lambda t: (-values[t], t))


@pytest.mark.parametrize("scratch", [Scratch(), None], ids=["host", "device"])
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3000),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.7, 30.0, 1e6]),
    st.sampled_from(DTYPES),
    st.data(),
)
def test_the_first_of_the_ranking_are_found(scratch, vocab_size, seed, spread, dtype, data):
    """Given some rows in any order: the tokens above the last one are complete and in order, by the CPU's
    method and by that of other devices."""
    count = data.draw(st.integers(1, vocab_size) | st.integers(1, max(1, vocab_size // 40)))
    rows = some_rows(9, vocab_size, seed, spread).to(dtype)
    index = np.array([4, 1, 2, 5, 0, 8, 6])
    ranked = RankedRows(rows, index, scratch)
    whole = [rows[place] for place in index]
    # As many as are ranked together.
    places = np.array([3, 0, 4, 1, 6, 5])
    assert len(places) >= top_tokens.MIN_GROUPED_ROWS
    found = ranked.top(places, count)
    assert ranked.max().tolist() == [float(each.max()) for each in whole]
    for some in (places, np.array([1, 2])):
        assert torch.equal(ranked.take(some), torch.stack([whole[place] for place in some]).to(ranked.dtype))
    columns = torch.randint(0, vocab_size, (3, 7), generator=torch.Generator().manual_seed(seed))
    gathered = torch.as_tensor(ranked.gather(columns if scratch is None else columns.numpy()))
    assert torch.equal(gathered, torch.stack(whole[:3]).to(ranked.dtype).gather(1, columns))
    for index, place in enumerate(places):
        row, ids = whole[place], found.ids[index].tolist()
        assert found.values[index].tolist() == row[ids].tolist()
        assert len(set(ids)) == count
        above = [token_id for token_id in ranking_of(row) if row[token_id] > found.values[index, -1]]
        assert ids[: len(above)] == above
        assert ids[len(above) :] == sorted(ids[len(above) :]), "equals are in order of id"
        assert (row > found.values[index, -1]).sum() < count


def test_thousands_of_equals_are_not_sorted(monkeypatch):
    """Given a row of which a grammar allows ten tokens: these and `count` others are sorted, not all."""
    considered = []

    def remember(*args):
        considered.append(drop_ties(*args))
        return considered[-1]

    drop_ties = top_tokens._drop_ties
    monkeypatch.setattr(top_tokens, "_drop_ties", remember)
    row = torch.full((1, 50_000), -torch.inf)
    row[0, 4000:4010] = torch.arange(10.0)
    found = RankedRows(row, scratch=Scratch()).top(np.array([0]), 256)
    assert found.ids[0, :11].tolist() == [*range(4009, 3999, -1), 0]
    assert [len(ids) for ids in considered] == [266]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 2000), st.integers(0, 10**6), st.sampled_from([0.0, 0.7, 30.0]), st.sampled_from(DTYPES)
)
def test_the_first_of_the_highest_is_found(vocab_size, seed, spread, dtype):
    rows = some_rows(4, vocab_size, seed, spread).to(dtype)
    highest, ids = row_max(rows)
    assert ids.tolist() == [ranking_of(row)[0] for row in rows]
    assert highest.tolist() == rows.amax(dim=1).tolist()
    rows[2, vocab_size // 2] = math.nan
    assert row_max(rows)[0].isnan().tolist() == [False, False, True, False]


@settings(deadline=None, max_examples=120)
@given(
    st.integers(1, 600),
    st.integers(0, 10**6),
    st.sampled_from([1e-30, 0.01, 1.0, 4.0, 300.0]),
    st.sampled_from([1e-30, 0.3, 1.0, 5.0]),
    st.floats(0.001, 1.0),
)
def test_keep_top_mass_cuts_the_ranking_at_the_mass(vocab_size, seed, spread, nat, share):
    """Given weights that are counts, whose sums are exact in any order, equals and -inf among the values."""
    rng = np.random.default_rng(seed)
    values = some_rows(1, vocab_size, seed, 10.0)[0] * spread
    weights = torch.from_numpy(rng.integers(0, 4, vocab_size).astype(np.float64))
    weights[rng.integers(vocab_size)] = 3
    weights[values == -torch.inf] = 0
    mass = share * float(weights.sum())
    expected, reached = torch.zeros_like(weights), 0.0
    for token_id in ranking_of(values):
        if reached < mass:
            expected[token_id] = weights[token_id]
            reached += float(weights[token_id])
    before = weights.clone()
    if values.max() > -torch.inf:
        assert torch.equal(keep_top_mass(values, weights, mass, nat), expected)
    assert torch.equal(weights, before), "the weights are the caller's"


def test_zero_and_minus_zero_are_equal():
    """Given rows that are ranked together, whose highest tokens are 0.0 and -0.0 in turn, above others."""
    row = -torch.arange(1.0, 3201.0)
    row[200:3200:150] = torch.tensor([0.0, -0.0] * 10)
    rows = row.expand(top_tokens.MIN_GROUPED_ROWS, -1).contiguous()
    found = RankedRows(rows, scratch=Scratch()).top(np.arange(len(rows)), 40)
    assert found.ids[:, :20].tolist() == [list(range(200, 3200, 150))] * len(rows)
