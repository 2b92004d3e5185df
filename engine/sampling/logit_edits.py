"""What is done to a step's logits before tokens are chosen: masks, biases and penalties, for all rows.

In this order, which is vLLM's (`vllm/v1/sample/sampler.py`, steps 2 to 6), in float32 or what is wider:

1. allowed: the logit of every token that the caller's bit mask (a grammar's) or `allowed_token_ids` leaves
   out becomes -inf.
2. forbidden: so does that of a token that would complete one of `bad_words`, and, while there are fewer than
   `min_tokens` output tokens, that of every token that would end the sequence.
3. `logit_bias[t]` is added to the logit of t.
4. For each token that occurs in the prompt or in the output, r = repetition_penalty:
   x = x / r if x > 0 else x * r.
5. For each token that occurs n > 0 times in the output alone:
   x = x - frequency_penalty * n - presence_penalty.

(4 and 5: `apply_penalties` in `vllm/model_executor/layers/utils.py`. 4 is Keskar et al. 2019, CTRL; 5 is
OpenAI's definition.) Only the entries concerned are touched: nothing here is as large as the vocabulary but
the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pagefleet.engine.sampling.logit_rules import LogitRules

__all__ = ["RuledRow", "edited"]

_BITS = 8


class RuledRow(Protocol):
    """What must be known of a row here."""

    @property
    def rules(self) -> LogitRules | None: ...

    @property
    def token_ids(self) -> Sequence[int]: ...


class _Ruled(NamedTuple):
    """A row that has rules."""

    place: int
    rules: LogitRules
    token_ids: Sequence[int]


def edited(
    logits: torch.Tensor,
    places: NDArray[np.int64],
    rows: Sequence[RuledRow],
    allowed: NDArray[np.int32] | None = None,
) -> torch.Tensor:
    """A copy [N, vocab] of logits[places], as the rows' rules and `allowed` make it.

    `allowed` [N, ceil(vocab / 32)] has bit t % 32 of word t // 32 set where row n may have token t.
    """
    ruled = [
        _Ruled(index, row.rules, row.token_ids) for index, row in enumerate(rows) if row.rules is not None
    ]
    taken = logits.index_select(0, torch.from_numpy(places).to(logits.device))
    taken = taken.to(torch.promote_types(logits.dtype, torch.float32))
    if allowed is not None:
        _keep_allowed_bits(taken, allowed)
    _keep_allowed(taken, [row for row in ruled if row.rules.allowed is not None])
    _forbid(taken, ruled)
    _add_bias(taken, [row for row in ruled if len(row.rules.bias)])
    _penalise(taken, ruled)
    return taken


def _keep_allowed_bits(logits: torch.Tensor, allowed: NDArray[np.int32]) -> None:
    """Rows that may have everything are passed over: mostly few have a grammar."""
    limited = np.flatnonzero((allowed != -1).any(axis=1))
    if not len(limited):
        return
    octets = torch.from_numpy(np.ascontiguousarray(allowed[limited], dtype="<i4").view(np.uint8))
    octets = octets.to(logits.device)
    bits = octets[:, :, None] & (1 << torch.arange(_BITS, dtype=torch.uint8, device=logits.device))
    is_allowed = bits.flatten(1)[:, : logits.shape[-1]] != 0
    index = torch.from_numpy(limited).to(logits.device)
    logits[index] = logits[index].masked_fill_(~is_allowed, -torch.inf)


def _keep_allowed(logits: torch.Tensor, ruled: list[_Ruled]) -> None:
    for each in ruled:
        row = logits[each.place]
        allowed = torch.from_numpy(np.array(each.rules.allowed, dtype=np.int64)).to(logits.device)
        kept = row.index_select(0, allowed)
        row.fill_(-torch.inf).index_copy_(0, allowed, kept)


def _forbid(logits: torch.Tensor, ruled: list[_Ruled]) -> None:
    parts = [(row.place, row.rules.forbidden(row.token_ids)) for row in ruled]
    parts = [(index, token_ids) for index, token_ids in parts if len(token_ids)]
    if parts:
        logits[_places(logits, parts)] = -torch.inf


def _add_bias(logits: torch.Tensor, ruled: list[_Ruled]) -> None:
    if not ruled:
        return
    places = _places(logits, [(row.place, row.rules.bias_token_ids) for row in ruled])
    bias = _column(logits, np.concatenate([row.rules.bias for row in ruled]))
    logits[places] = (logits[places].double() + bias).to(logits.dtype)


def _penalise(logits: torch.Tensor, ruled: list[_Ruled]) -> None:
    counted = [(row, row.rules.counts(row.token_ids)) for row in ruled]
    parts = [(row, counts) for row, counts in counted if counts is not None and len(counts.token_ids)]
    if not parts:
        return
    lengths = [len(counts.token_ids) for _, counts in parts]

    def each(values: list[float]) -> torch.Tensor:
        return _column(logits, np.repeat(np.array(values, dtype=np.float64), lengths))

    places = _places(logits, [(row.place, counts.token_ids) for row, counts in parts])
    num_outputs = _column(logits, np.concatenate([counts.num_outputs for _, counts in parts]))
    repetition = each([row.rules.repetition_penalty for row, _ in parts])
    values = logits[places].double()
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= each([row.rules.frequency_penalty for row, _ in parts]) * num_outputs
    values -= each([row.rules.presence_penalty for row, _ in parts]) * (num_outputs > 0)
    logits[places] = values.to(logits.dtype)


def _places(
    logits: torch.Tensor, parts: Sequence[tuple[int, Sequence[int]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each token in `parts`, row by row."""
    rows = np.repeat([index for index, _ in parts], [len(token_ids) for _, token_ids in parts])
    columns = np.concatenate([np.array(token_ids, dtype=np.int64) for _, token_ids in parts])
    return _column(logits, rows), _column(logits, columns)


def _column(logits: torch.Tensor, values: NDArray[np.int64] | NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).to(logits.device)
