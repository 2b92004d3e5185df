"""Sequence: the state of one list of tokens that the engine extends."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

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
    token_ids: list[int]
    """Prompt and output tokens. The sequence owns the list."""
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
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Tokens taken from the prefix cache when it first joined the batch."""
    num_wrong_drafts: int = 0
    """Draft tokens that were rejected so far."""
    draft_token_ids: list[int] = field(default_factory=list)
    """Draft tokens after `token_ids` in the scheduled step."""

    # Written by the block manager.
    block_tables: list[BlockTable] = field(default_factory=list)
    """One for each KV group; empty while it waits."""
    num_slots: int = 0
    """The number of tokens that all of its tables have blocks for."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of its first full blocks, as far as needed; kept after a preemption."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Also the output position of the token that is sampled next."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether every prompt token must be computed for its logits, which the prefix cache does not
        have."""
        return self.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]
