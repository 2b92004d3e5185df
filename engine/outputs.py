"""What the engine returns: the tokens of a step, why a sequence ended, and the engine's statistics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

__all__ = ["EngineStats", "FinishReason", "KVGroupStats", "Sampled", "SequenceOutput", "TokenLogprobs"]


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """It reached an end-of-sequence token, a stop token or a stop string."""
    LENGTH = "length"
    """It reached max_tokens or the model's context length."""
    ABORT = "abort"
    """The caller aborted the request."""
    ERROR = "error"
    """This sequence could not continue; `stop_reason` has the error message. Others are not affected."""


class TokenLogprobs(NamedTuple):
    """A token's logprob and rank in the model's distribution, before any sampling parameter changes it."""

    token_id: int
    logprob: float
    """Natural logarithm of the token's probability."""
    rank: int
    """1 for the most likely token; tokens with equal probabilities have equal ranks."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens and their logprobs, sorted by (logprob descending, id ascending)."""


class Sampled(NamedTuple):
    """The tokens and logprobs that a step computed for one scheduled sequence."""

    token_ids: tuple[int, ...] = ()
    """The next tokens, in order; empty if the step did not reach the sequence's last known token."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, if the request asks for logprobs."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """If the request asks for prompt logprobs: those of the prompt tokens that follow the tokens of this
    step."""


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """The tokens and the text that one step added to one sequence.

    The outputs of a sequence, joined in order, are its tokens and its text; `offset` is the position of each.
    An engine that replays a prefix of the tokens as a log continues with the same tokens and texts.
    """

    request_id: str
    choice: int
    offset: int
    """Index of the first of `token_ids` among the sequence's output tokens."""
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    """The text that each of `token_ids` adds. Text that may begin a stop string is held back until that is
    decided."""
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    """The stop string or the stop token's id; the error message if `finish_reason` is ERROR; else None."""
    num_cached_tokens: int
    """Tokens that the sequence took from the prefix cache when it first joined the batch."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`, if the request asks for logprobs."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """If the request asks for prompt logprobs, with the first token of choice 0: those of the prompt's
    tokens from the second on."""

    @property
    def text(self) -> str:
        return "".join(self.texts)


class KVGroupStats(NamedTuple):
    """The KV cache blocks of the layers with one attention window."""

    window: int | None
    """How many tokens a query attends to, itself included. None: all."""
    num_blocks: int
    num_free_blocks: int
    """Blocks that no sequence uses, including cached ones."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics of an engine: the first six fields are current values, the others count since its start."""

    num_running: int
    num_waiting: int
    num_free_blocks: int
    """Like `num_blocks`, of the first KV group, which has no window if any group has none."""
    num_blocks: int
    kv_groups: tuple[KVGroupStats, ...]
    kv_waste: float
    """The share of the slots in used blocks that have no token, 0 to 1."""
    num_steps: int
    num_generation_tokens: int
    num_prompt_tokens_computed: int
    """Tokens computed again after a preemption count again; tokens from the prefix cache do not count."""
    prefix_cache_queries: int
    """Tokens looked up in the prefix cache when a sequence first joins the batch."""
    prefix_cache_hits: int
    """Tokens of `prefix_cache_queries` that were found."""
    num_preemptions: int
    num_draft_tokens: int
    """Speculative tokens that were computed."""
    num_accepted_tokens: int
    """Speculative tokens that were accepted."""
    last_step_num_seqs: int
    """Sequences that got a token in the last step."""
