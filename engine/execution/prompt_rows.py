"""PromptRows: the rows of a step whose logits are needed for prompt logprobs. Does not know tensors."""

from __future__ import annotations

from typing import NamedTuple

from pagefleet.engine.core.sequence import Sequence

__all__ = ["PromptRows", "add_prompt_rows"]


class PromptRows(NamedTuple):
    """The rows of a step whose logits are needed for prompt logprobs."""

    rows: list[int]
    """Rows of the ragged batch: the prompt tokens that are followed by a prompt token."""
    token_ids: list[int]
    """The token that follows each of them."""
    num_top: list[int]
    """How many of the most likely tokens each row needs."""
    lengths: dict[int, int]
    """Number of rows by index of the sequence in the step, in order; sequences without prompt logprobs are
    missing."""


def add_prompt_rows(
    found: PromptRows, index: int, sequence: Sequence, positions: range, first_row: int
) -> None:
    """Add the rows of a sequence that the step computes at these positions, if it needs prompt logprobs.

    Args:
        index: its index in the step. first_row: the row of its first token.
    """
    num_top = sequence.sampling_params.prompt_logprobs
    if num_top is None or not sequence.needs_prompt_logits:
        return
    begin, end = positions.start, min(positions.stop, sequence.num_prompt_tokens - 1)
    num_rows = max(0, end - begin)
    found.rows.extend(range(first_row, first_row + num_rows))
    found.token_ids.extend(sequence.token_ids[begin + 1 : begin + 1 + num_rows].tolist())
    found.num_top.extend([num_top] * num_rows)
    found.lengths[index] = num_rows
