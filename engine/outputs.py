"""What leaves the engine: the tokens of a step, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

__all__ = ["EngineStats", "FinishReason", "Sampled", "SequenceOutput", "TokenLogprobs"]


class FinishReason(StrEnum):
    """Why a sequence got no further token."""

    STOP = "stop"
    """An end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """max_tokens, or the model's context, is used up."""
    ABORT = "abort"
    """The caller took the request back."""
    ERROR = "error"
    """This sequence alone could not go on; `stop_reason` has the sentence."""


class TokenLogprobs(NamedTuple):
    """A token's place in the model's distribution: before temperature, penalties, filters and masks."""

    token_id: int
    logprob: float
    """Natural logarithm of the token's probability."""
    rank: int
    """1 for the most likely; tokens that are as likely as each other have the same."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and their logprobs, by (logprob descending, id ascending)."""


class Sampled(NamedTuple):
    """What a step found for one scheduled sequence."""

    token_ids: tuple[int, ...] = ()
    """The tokens that follow, in order: none where the step ended before the sequence's last token."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of them, where they are asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Where they are asked for: of the prompt's tokens that follow those that this step computed."""


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What one step added to one sequence.

    The outputs of a sequence, joined in order, are its tokens and its text: `offset` says where they go.
    Replaying a prefix of the tokens into another engine and going on from there yields the same texts.
    """

    request_id: str
    choice: int
    offset: int
    """Index of the first of `token_ids` among the sequence's output tokens."""
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    """What each of these tokens adds to the text. What may be the beginning of a stop string comes later."""
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    """The stop string or the stop token's id; the sentence where `finish_reason` is ERROR; else None."""
    num_cached_tokens: int
    """Tokens that the prefix cache saved when the sequence first joined the batch."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, where they are asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """With the first token of choice 0, where they are asked for: the prompt's tokens from the second on."""

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's figures: the first five of this moment, the others since it started."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    kv_waste: float
    """Of the slots in used blocks, the share that no token has been found for."""
    num_steps: int
    num_generation_tokens: int
    num_prompt_tokens_computed: int
    """Recomputation after a preemption counts again; tokens from the prefix cache don't."""
    prefix_cache_queries: int
    """Tokens that were looked up in the prefix cache, at each sequence's first admission."""
    prefix_cache_hits: int
    """Tokens of these that were found."""
    num_preemptions: int
    num_draft_tokens: int
    """Tokens that were guessed ahead and computed."""
    num_accepted_tokens: int
    """Of these, those that were right."""
    last_step_num_seqs: int
    """Sequences that received a token in the last step."""
