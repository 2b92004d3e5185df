"""Sequence: everything the engine keeps about one growing list of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pagefleet.engine.core.ngram_proposer import NgramProposer
from pagefleet.engine.outputs import FinishReason, TokenLogprobs
from pagefleet.engine.sampling.logit_rules import LogitRules
from pagefleet.engine.sampling.sampling_params import SamplingParams
from pagefleet.engine.structured.grammar import Grammar
from pagefleet.engine.text.detokenizer import IncrementalDetokenizer

__all__ = ["Sequence", "SequenceStatus"]


class SequenceStatus(Enum):
    """Where the scheduler has it."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One list of tokens that the engine extends.

    token_ids      [ prompt ............ | output ... ]
                   0     num_prompt_tokens     num_tokens
    K/V computed   [ ............ )
                    num_computed_tokens

    A step computes tokens from `num_computed_tokens` on; where it reaches `num_tokens`, one is sampled.
    Two sequences are equal only if they are the same object.
    """

    request_id: str
    token_ids: list[int]
    """Prompt and output. The sequence owns the list."""
    num_prompt_tokens: int
    sampling_params: SamplingParams
    seed: int
    """Resolved: 64 bits, also where the request gave none."""
    choice: int = 0
    priority: int = 0
    """Larger is more urgent."""
    cache_salt: str = ""
    """Only sequences with the same salt share blocks of the prefix cache."""
    prefix_cache: bool = True
    """Whether it looks for its blocks in the prefix cache, and leaves them there."""
    detokenizer: IncrementalDetokenizer | None = None
    """The text's state; None where nobody reads the text."""
    logit_rules: LogitRules | None = None
    """What the parameters do to its logits; None where they do nothing."""
    grammar: Grammar | None = None
    """What may follow the output tokens; None where anything may."""
    first_choice: Sequence | None = None
    """The one whose prompt, and the hashes of its blocks, are this one's too."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's tokens from the second on, as far as they are computed; None where nobody asks."""
    proposer: NgramProposer | None = None
    """Guesses what follows; None where nobody wants guesses."""

    # What the scheduler writes.
    arrival: int = 0
    """Position in the order of arrival at this scheduler."""
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    was_scheduled: bool = False
    last_turn: int = 0
    """Of all turns that the scheduler gave, the number of its last one."""
    max_num_tokens: int = 0
    """Prompt and output never become more."""
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Tokens that the prefix cache held at the first admission."""
    num_wrong_drafts: int = 0
    draft_token_ids: list[int] = field(default_factory=list)
    """What is guessed to follow, in the step that is scheduled."""

    # What the block manager writes.
    block_table: list[int] = field(default_factory=list)
    """Block i holds K/V of tokens i * block_size and on."""
    block_hashes: list[bytes] = field(default_factory=list)
    """Hashes of the first full blocks, as far as they were needed; they outlive a preemption."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Also the position, among the output tokens, of the token that is sampled next."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Every token of the prompt must be computed here: the prefix cache knows no logits."""
        return self.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]
