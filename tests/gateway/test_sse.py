"""An event's id says where a reader is, and can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagefleet.api.gateway.http.sse import Position, parse_position

counts = st.lists(st.integers(0, 10**8 - 1), min_size=1, max_size=9)


@given(counts, st.sets(st.integers(0, 8)), st.booleans(), st.booleans())
def test_it_says_all_of_it(counts, ended, usage, token_ids):
    ended = frozenset(choice for choice in ended if choice < len(counts))
    position = Position(counts, usage, token_ids, ended)
    assert parse_position(str(position)) == position


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("12", Position([12])),
        ("12e", Position([12], ended=frozenset({0}))),
        ("12.9e.3ut", Position([12, 9, 3], True, True, frozenset({1}))),
        ("12ee", Position([12], ended=frozenset({0}))),
        ("e12", None),
        ("", None),
    ],
)
def test_ids(text, position):
    assert parse_position(text) == position
