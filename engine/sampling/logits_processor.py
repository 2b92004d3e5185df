"""process_logits: applies masks, biases and penalties to a step's logits before tokens are chosen.

The order is vLLM's (`vllm/v1/sample/sampler.py`, steps 2 to 6); the arithmetic is float32, or wider if the
logits are:

1. allowed: the logit of every token outside of the grammar's mask or of `allowed_token_ids` becomes -inf.
2. forbidden: the logit of a token that would complete one of `bad_words` becomes -inf and, before
   `min_tokens` output tokens, so does that of every token that would end the sequence.
3. `logit_bias[t]` is added to the logit of t.
4. For each token that occurs in the prompt or in the output, with r = repetition_penalty:
   x = x / r if x > 0 else x * r.
5. For each token that occurs n > 0 times in the output:
   x = x - frequency_penalty * n - presence_penalty.

(4 and 5: `apply_penalties` in `vllm/model_executor/layers/utils.py`. 4 is from Keskar et al. 2019, CTRL; 5 is
OpenAI's definition.) 2 to 5 touch only the entries of the tokens concerned; only the masks are as large as
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.sampling_batch import GrammarMasks, RowIndices, RowRules

__all__ = ["process_logits"]

_BITS = 8


def process_logits(
    logits: torch.Tensor,
    indices: RowIndices,
    rules: Sequence[RowRules],
    masks: GrammarMasks | None = None,
) -> torch.Tensor:
    """Return a copy [M, vocab] of logits[indices], changed by rules and masks, which number its rows."""
    copied = logits.index_select(0, torch.from_numpy(indices).to(logits.device))
    copied = copied.to(torch.promote_types(logits.dtype, torch.float32))
    if masks is not None and len(masks.rows):
        _apply_masks(copied, masks.rows, masks.packed)
    _apply_allowed_token_ids(copied, [each for each in rules if each.rules.allowed is not None])
    _apply_forbidden(copied, rules)
    _apply_bias(copied, [each for each in rules if len(each.rules.bias)])
    _apply_penalties(copied, rules)
    return copied


def _apply_masks(logits: torch.Tensor, rows: RowIndices, packed: NDArray[np.int32]) -> None:
    octets = torch.from_numpy(np.ascontiguousarray(packed, dtype="<i4").view(np.uint8)).to(logits.device)
    bits = octets[:, :, None] & (1 << torch.arange(_BITS, dtype=torch.uint8, device=logits.device))
    is_allowed = bits.flatten(1)[:, : logits.shape[-1]] != 0
    index = torch.from_numpy(rows).to(logits.device)
    logits[index] = logits[index].masked_fill_(~is_allowed, -torch.inf)


def _apply_allowed_token_ids(logits: torch.Tensor, ruled: Sequence[RowRules]) -> None:
    for each in ruled:
        row = logits[each.row]
        allowed = torch.from_numpy(np.array(each.rules.allowed, dtype=np.int64)).to(logits.device)
        kept = row.index_select(0, allowed)
        row.fill_(-torch.inf).index_copy_(0, allowed, kept)


def _apply_forbidden(logits: torch.Tensor, ruled: Sequence[RowRules]) -> None:
    parts = [(row.row, row.rules.forbidden(row.token_ids)) for row in ruled]
    parts = [(index, token_ids) for index, token_ids in parts if len(token_ids)]
    if parts:
        logits[_entries(logits, parts)] = -torch.inf


def _apply_bias(logits: torch.Tensor, ruled: Sequence[RowRules]) -> None:
    if not ruled:
        return
    entries = _entries(logits, [(row.row, row.rules.bias_token_ids) for row in ruled])
    bias = _tensor(logits, np.concatenate([row.rules.bias for row in ruled]))
    logits[entries] = (logits[entries].double() + bias).to(logits.dtype)


def _apply_penalties(logits: torch.Tensor, ruled: Sequence[RowRules]) -> None:
    counted = [(row, row.rules.counts(row.token_ids)) for row in ruled]
    parts = [(row, counts) for row, counts in counted if counts is not None and len(counts.token_ids)]
    if not parts:
        return
    lengths = [len(counts.token_ids) for _, counts in parts]

    def per_token(values: list[float]) -> torch.Tensor:
        return _tensor(logits, np.repeat(np.array(values, dtype=np.float64), lengths))

    entries = _entries(logits, [(row.row, counts.token_ids) for row, counts in parts])
    output_counts = _tensor(logits, np.concatenate([counts.output_counts for _, counts in parts]))
    repetition = per_token([row.rules.repetition_penalty for row, _ in parts])
    values = logits[entries].double()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= per_token([row.rules.frequency_penalty for row, _ in parts]) * output_counts
    values -= per_token([row.rules.presence_penalty for row, _ in parts]) * (output_counts > 0)
    logits[entries] = values.to(logits.dtype)


def _entries(
    logits: torch.Tensor, parts: Sequence[tuple[int, Sequence[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the row and the column of each token in `parts`, which are (row, token ids)."""
    rows = np.repeat([index for index, _ in parts], [len(token_ids) for _, token_ids in parts])
    columns = np.concatenate([np.array(token_ids, dtype=np.int64) for _, token_ids in parts])
    return _tensor(logits, rows), _tensor(logits, columns)


def _tensor(logits: torch.Tensor, values: NDArray[np.int64] | NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).to(logits.device)
