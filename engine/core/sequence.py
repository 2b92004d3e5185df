"""Sequence: the state of one list of tokens that the engine extends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pagefleet.engine.core.batch_table import BatchTable
from pagefleet.engine.core.ngram_proposer import NgramProposer
from pagefleet.engine.outputs import FinishReason, TokenLogprobs
from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.grammar import Grammar
from pagefleet.engine.text.detokenizer import IncrementalDetokenizer

__all__ = ["BlockTable", "Sequence", "SequenceStatus"]


class SequenceStatus(Enum):
    """The state of a sequence in the scheduler."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True)
class BlockTable:
    """The KV cache blocks of a sequence in one KV group."""

    block_ids: list[int] = field(default_factory=list)
    """The i-th block holds the K/V of the tokens from i * block_size on; 0 for a passed one."""
    num_passed: int = 0
    """How many blocks at the start the window has passed: they are free, or never were allocated."""
    row: NDArray[np.int32] | None = None
    """The row of the batch table that repeats `block_ids`."""

    def append(self, block_id: int) -> None:
        if self.row is not None:
            self.row[len(self.block_ids)] = block_id
        self.block_ids.append(block_id)

    def copy_to(self, row: NDArray[np.int32]) -> None:
        """Repeat the blocks in this row, from now on."""
        row[: len(self.block_ids)] = self.block_ids
        self.row = row

    @property
    def used(self) -> list[int]:
        """The ids of the blocks that are not passed."""
        return self.block_ids[self.num_passed :]


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request: a list of tokens that the engine extends, and its state.

    token_ids      [ prompt ............ | output ... ]
                   0     num_prompt_tokens     num_tokens
    K/V computed   [ ............ )
                    num_computed_tokens

    A step computes tokens from `num_computed_tokens` on; if it reaches `num_tokens`, the next one is sampled.
    Sequences are compared by identity.
    """

    request_id: str
    tokens: NDArray[np.int32]
    """The array with its tokens at the beginning: its own, or a row of the batch table while it runs."""
    num_prompt_tokens: int
    sampling_params: SamplingParams
    seed: int
    """64 bits; drawn at random if the request has none."""
    choice: int = 0
    priority: int = 0
    """Sequences with a larger value are scheduled first."""
    cache_salt: str = ""
    """Only sequences with the same salt share blocks of the prefix cache."""
    prefix_cache: bool = True
    """Whether it takes blocks from the prefix cache and adds its own."""
    detokenizer: IncrementalDetokenizer | None = None
    """The state of its text; None in tests that need no text."""
    logit_rules: LogitRules | None = None
    """How the parameters change its logits; None if they do not."""
    grammar: Grammar | None = None
    """Which tokens may follow the output; None if any may."""
    first_choice: Sequence | None = None
    """The request's first sequence, which has the same prompt and therefore the same block hashes."""
    is_confirmed: bool = True
    """Whether it may be computed; until then, each step that has room for it reports it."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Those of the prompt's tokens from the second on, as far as computed; None if not requested."""
    proposer: NgramProposer | None = None
    """Proposes draft tokens; None without speculative decoding."""

    # Written by the scheduler.
    arrival: int = 0
    """Its number in the order of arrival at this scheduler."""
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    was_scheduled: bool = False
    last_turn: int = 0
    """The number of its last turn, counted over all sequences of the scheduler."""
    max_num_tokens: int = 0
    """The largest number of tokens, prompt and output, that it may have."""
    num_cached_tokens: int = 0
    """Tokens taken from the prefix cache when it first joined the batch."""
    num_wrong_drafts: int = 0
    """Draft tokens that were rejected so far."""
    draft_token_ids: list[int] = field(default_factory=list)
    """Draft tokens after `token_ids` in the scheduled step."""
    num_in_flight: int = 0
    """Steps in flight that computed it before it was preempted."""
    last_serial: int = 0
    """The serial of its slot before it was preempted."""

    # Written by the block manager.
    block_tables: list[BlockTable] = field(default_factory=list)
    """One for each KV group; empty while it waits."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of its first full blocks, as far as needed; kept after a preemption."""

    # Written by the output processor.
    has_ended_text: bool = False
    """Whether an output with a finish reason was made; tokens that come later are dropped."""

    # Written by the batch table.
    slot: int = -1
    """Its slot while it runs, else -1."""
    _table: BatchTable | None = None

    def __post_init__(self) -> None:
        self.tokens = np.array(self.tokens, dtype=np.int32)

    def enter(self, table: BatchTable, slot: int) -> None:
        """Read its tokens and counts from this slot from now on."""
        self._table, self.slot = table, slot
        self.tokens = table.token_ids[slot]

    def leave(self) -> None:
        """Copy its tokens from the table. Its blocks must have been freed."""
        assert self._table is not None, self.request_id
        self.num_in_flight = int(self._table.num_in_flight[self.slot])
        self.last_serial = int(self._table.serial[self.slot])
        self.tokens = self.token_ids.copy()
        self._table, self.slot = None, -1

    def append(self, token_ids: Iterable[int]) -> None:
        """Append tokens to a sequence that does not run."""
        assert self._table is None, self.request_id
        self.tokens = np.append(self.tokens, np.fromiter(token_ids, dtype=np.int32))

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Prompt and output tokens, without those that steps in flight will sample. A view."""
        return self.tokens[: self.num_tokens]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) if self._table is None else self._table.num_tokens.item(self.slot)

    @property
    def num_output_tokens(self) -> int:
        """Also the output position of the token that is sampled next."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose K/V are computed, those of steps in flight included; 0 while it waits."""
        return 0 if self._table is None else self._table.num_computed.item(self.slot)

    @num_computed_tokens.setter
    def num_computed_tokens(self, value: int) -> None:
        assert self._table is not None, self.request_id
        self._table.num_computed[self.slot] = value

    @property
    def num_slots(self) -> int:
        """The number of tokens that all of its block tables have blocks for."""
        return 0 if self._table is None else self._table.num_slots.item(self.slot)

    @num_slots.setter
    def num_slots(self, value: int) -> None:
        assert self._table is not None, self.request_id
        self._table.num_slots[self.slot] = value

    @property
    def is_in_flight(self) -> bool:
        """Whether a step that is not finished computes it, or computed it before it was preempted."""
        if self._table is None:
            return self.num_in_flight > 0
        return bool(self._table.num_in_flight[self.slot])

    @property
    def block_rows(self) -> list[NDArray[np.int32]]:
        """Its row of the batch table's block tables, for each KV group."""
        assert self._table is not None, self.request_id
        return self._table.rows(self.slot)

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether every prompt token must be computed for its logits, which the prefix cache does not
        have."""
        return self.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def output_token_ids(self) -> list[int]:
        found: list[int] = self.token_ids[self.num_prompt_tokens :].tolist()
        return found
