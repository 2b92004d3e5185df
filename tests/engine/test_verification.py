"""Which rows of a step are sampled, and which of their tokens are valid, against a loop over the entries."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pagefleet.engine.core.bookings import right_rows
from pagefleet.engine.execution.verification import sampled_rows

entries = st.builds(
    lambda num_known, drafts, is_sampled: (num_known, drafts if is_sampled else [], is_sampled),
    st.integers(1, 4),
    st.lists(st.integers(0, 2), max_size=4),
    st.booleans(),
)


def num_verified(sampled: list[int], drafted: list[int]) -> int:
    """Tokens that equal their drafts, and the first that does not."""
    for index, (token_id, draft) in enumerate(zip(sampled, drafted, strict=False)):
        if token_id != draft:
            return index + 1
    return len(sampled)


@given(st.lists(entries, max_size=8), st.data())
def test_rows_and_valid_tokens_are_those_of_a_loop(entries, data):
    """Given entries with and without drafts, sampled or not, and any sampled tokens."""
    logit_rows, owners, num_drafts, end = [], [], [], 0
    for index, (num_known, drafts, is_sampled) in enumerate(entries):
        for position in range(is_sampled * (len(drafts) + 1)):
            logit_rows.append(end + num_known - 1 + position)
            owners.append(index)
            num_drafts.append(position)
        end += num_known + len(drafts)
    rows = sampled_rows(
        np.array([num_known + len(drafts) for num_known, drafts, _ in entries], dtype=np.int64),
        np.array([len(drafts) for _, drafts, _ in entries], dtype=np.int64),
        np.array([is_sampled for _, _, is_sampled in entries], dtype=np.bool_),
    )
    assert [each.tolist() for each in rows] == [logit_rows, owners, num_drafts]

    tokens = np.array([data.draw(st.integers(0, 2)) for _ in owners], dtype=np.int64)
    expected = []
    for index, (_, drafts, is_sampled) in enumerate(entries):
        own = tokens[rows.entries == index].tolist()
        num_valid = num_verified(own, drafts) if is_sampled else 0
        expected += [position < num_valid for position in range(len(own))]
    flat = np.array([token_id for _, drafts, _ in entries for token_id in drafts], dtype=np.int64)
    num_drafts = np.array([len(drafts) for _, drafts, is_sampled in entries if is_sampled], dtype=np.int64)
    assert right_rows(num_drafts, tokens, flat).tolist() == expected
