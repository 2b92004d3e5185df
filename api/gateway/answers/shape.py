"""Shape: the format of an endpoint's answers. It has a subclass for each endpoint, and no state."""

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
"""OpenAI's clients know few reasons only; ``stop_reason`` contains the fleet's own."""


def finish_fields(reason: str | None, stop_reason: str | int | None) -> dict[str, Any]:
    """Return OpenAI's ``finish_reason`` and vLLM's ``stop_reason``."""
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
    """The format of one answer.

    ``choice`` is the index of a choice in the answer, over all prompts.
    """

    answer_id: str
    model: str
    echo: bool = False
    wants_token_ids: bool = False
    fingerprint: str | None = None
    names: Mapping[str, str] = field(default_factory=lambda: FIELD_NAMES)
    """The names of job fields in the request, for error messages."""

    chunk_object: ClassVar[str]
    whole_object: ClassVar[str]

    @abstractmethod
    def opening(self, choice: int) -> dict[str, Any] | None:
        """Return what a stream sends of a choice before its first token."""

    def reader(self, choice: int) -> ChoiceReader | None:
        """Return a new parser of a choice's text, or None if all text is one field."""
        return None

    @abstractmethod
    def tokens(self, choice: int, chunk: Chunk, delta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return what a stream sends of a chunk; ``delta`` is its text as the reader has parsed it."""

    def rest(self, choice: int, delta: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a stream sends of the text that the reader held back until the end."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, choice: int) -> dict[str, Any]:
        """Return the last event of a choice without further text; the caller adds why it ended."""

    def of_prompt(self, source: Chunk | JobResult) -> dict[str, Any]:
        """Return the answer's fields about its prompt."""
        return {}

    @abstractmethod
    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        """Return a choice of an answer that is not streamed."""

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": created_at(self.answer_id),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def whole(self, results: Sequence[JobResult]) -> dict[str, Any]:
        """Return an answer that is not streamed."""
        choices: list[dict[str, Any]] = []
        for result in results:
            first = len(choices)
            choices += [self.choice(first + each.index, each, result) for each in result.choices]
        of_prompt = self.of_prompt(results[0])
        return {**self.head(self.whole_object), **of_prompt, "choices": choices, "usage": usage_of(results)}
