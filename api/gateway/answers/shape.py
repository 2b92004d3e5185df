"""What a generating endpoint's answers look like: one subclass for each endpoint, stateless."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from pagefleet.api.chat.choice_reader import ChoiceReader
from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.messages import ChoiceResult, Fingerprint, JobResult
from pagefleet.api.gateway.answers.job_ids import created_at
from pagefleet.api.gateway.http.errors import FIELD_NAMES

_FINISH_REASONS: Final = {"cancelled": "stop", "deadline": "length", "error": "stop"}
"""OpenAI's clients know a few reasons only; the fleet's own stands in ``stop_reason`` beside it."""


def finish_fields(reason: str | None, stop_reason: str | int | None) -> dict[str, Any]:
    """``finish_reason`` as OpenAI has it, ``stop_reason`` as vLLM has it."""
    if reason in _FINISH_REASONS:
        return {"finish_reason": _FINISH_REASONS[reason], "stop_reason": reason}
    return {"finish_reason": reason, "stop_reason": stop_reason}


def usage(num_prompt_tokens: int, num_completion_tokens: int, num_cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached_tokens},
    }


def usage_of(results: Sequence[JobResult]) -> dict[str, Any]:
    return usage(
        sum(result.num_prompt_tokens or 0 for result in results),
        sum(len(choice.token_ids) for result in results for choice in result.choices),
        sum(result.num_cached_tokens for result in results),
    )


def fingerprint_text(fingerprint: Fingerprint) -> str:
    """``system_fingerprint``: the same for the same weights, tokenizer, dtype, backend and version."""
    text = fingerprint.model_dump_json(exclude={"v"})
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Shape(ABC):
    """How the choices of one answer are spelled.

    ``choice`` below is a choice's number in the answer: those of several prompts are counted on.
    """

    answer_id: str
    model: str
    echo: bool = False
    wants_token_ids: bool = False
    fingerprint: str | None = None
    names: Mapping[str, str] = field(default_factory=lambda: FIELD_NAMES)
    """How the request spells its job's fields, for errors."""

    chunk_object: ClassVar[str]
    whole_object: ClassVar[str]

    @abstractmethod
    def opening(self, choice: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token."""

    def reader(self, choice: int) -> ChoiceReader | None:
        """What tells a choice's text apart; None where all of it is one field. A new one for each reading."""
        return None

    @abstractmethod
    def tokens(self, choice: int, chunk: Chunk, delta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a stream says of some of its tokens; ``delta``: as the reader has told their text apart."""

    def rest(self, choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        """What the reader had kept for the end."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, choice: int) -> dict[str, Any]:
        """What a stream says at a choice's end, beside why it ended, if nothing else is to be said."""

    def of_prompt(self, told: Chunk | JobResult) -> dict[str, Any]:
        """What an answer says of its prompt beside its choices; ``told`` has it."""
        return {}

    @abstractmethod
    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        """All of it at once."""

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": created_at(self.answer_id),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self, results: Sequence[JobResult]) -> dict[str, Any]:
        """The answer without a stream."""
        choices: list[dict[str, Any]] = []
        for result in results:
            first = len(choices)
            choices += [self.choice(first + each.index, each, result) for each in result.choices]
        of_prompt = self.of_prompt(results[0])
        return {**self.head(self.whole_object), **of_prompt, "choices": choices, "usage": usage_of(results)}
