"""What the engine returns: the tokens of a step, why a sequence ended, and the engine's statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

__all__ = ["EngineStats", "FinishReason", "KVGroupStats", "SequenceOutput", "StepOutput", "TokenLogprobs"]


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


@dataclass(slots=True)
class StepOutput:
    """What one step added to all of its sequences: one entry in each list for each sequence that got a token
    or ended, tokens and texts end to end. The dicts have the entries of few sequences, by index.

    `sequence_outputs` returns the same as one object for each sequence.
    """

    request_ids: list[str]
    choices: list[int]
    offsets: list[int]
    """Index of each sequence's first new token among its output tokens."""
    counts: list[int]
    """How many tokens each sequence got."""
    token_ids: list[int]
    texts: list[str]
    """The text that each token adds."""
    num_cached_tokens: list[int]
    """Tokens that each sequence took from the prefix cache when it first joined the batch."""
    ends: dict[int, tuple[FinishReason, str | int | None]] = field(default_factory=dict)
    """The finish reason and the stop reason of the sequences that ended."""
    logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    """One for each token."""
    prompt_logprobs: dict[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.request_ids)

    def sequence_outputs(self) -> Iterator[SequenceOutput]:
        """Yield one output for each sequence, in order."""
        start = 0
        for index, request_id in enumerate(self.request_ids):
            end = start + self.counts[index]
            finish_reason, stop_reason = self.ends.get(index, (None, None))
            yield SequenceOutput(
                request_id,
                self.choices[index],
                self.offsets[index],
                tuple(self.token_ids[start:end]),
                tuple(self.texts[start:end]),
                finish_reason,
                stop_reason,
                self.num_cached_tokens[index],
                self.logprobs.get(index, ()),
                self.prompt_logprobs.get(index, ()),
            )
            start = end


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
