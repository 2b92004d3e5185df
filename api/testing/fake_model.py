"""A model whose tokens are words: its card, its log entries and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from pagefleet.api.client.questions import Answer, Question
from pagefleet.api.contract.messages import (
    Fingerprint,
    GenerateRequest,
    LogEntry,
    Logprob,
    ModelCard,
    TokenLogprobs,
)

Reply = Callable[[GenerateRequest], str]
"""Returns the text that answers a request, or raises the ``FleetError`` that the job fails with."""

_WORD: Final = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")


def fake_card(
    name: str = "fake",
    *,
    max_model_len: int = 4096,
    max_queue_depth: int = 1000,
    tool_parser: str = "json",
    reasoning_parser: str | None = None,
) -> ModelCard:
    """Return a model card for tests.

    Args:
        tool_parser: the notation of tool calls in replies: ``json``, ``hermes``, ``llama3`` or ``mistral``.
        reasoning_parser: ``think`` if replies have their reasoning in ``<think>`` tags.
    """
    fingerprint = Fingerprint(weights="fake", tokenizer="words", dtype="none", backend="fake", version="0")
    return ModelCard(
        name=name,
        max_model_len=max_model_len,
        vocab_size=2**31,
        max_queue_depth=max_queue_depth,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        fingerprint=fingerprint,
    )


def words_of(text: str) -> list[str]:
    return _WORD.findall(text)


def num_prompt_tokens(request: GenerateRequest) -> int:
    if request.prompt_token_ids is not None:
        return len(request.prompt_token_ids)
    texts = [message.content for message in request.messages or ()] or [request.prompt or ""]
    return sum(len(words_of(text)) for text in texts)


def finish_reason_of(request: GenerateRequest, words: list[str]) -> str:
    return "length" if len(words) >= request.sampling.max_tokens else "stop"


def entries_of(request: GenerateRequest, choice: int, words: list[str]) -> Iterator[LogEntry]:
    """Yield the log entries of a choice, one for each word. Each word has the probability 1."""
    sampling = request.sampling
    last = min(len(words), sampling.max_tokens) - 1
    for offset, word in enumerate(words[: last + 1]):
        yield LogEntry(
            choice=choice,
            offset=offset,
            token_ids=[offset],
            texts=[(request.prompt or "") + word if request.echo and offset == 0 else word],
            finish_reason=finish_reason_of(request, words) if offset == last else None,
            logprobs=None if sampling.logprobs is None else [_certain(offset, word, sampling.logprobs)],
            prompt_logprobs=_prompt_logprobs(request) if choice == offset == 0 else None,
        )


class FakeTokenizer:
    """A token is a word; its id is the number of different words before it."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def answer(self, question: Question) -> Answer:
        if question.token_ids is not None:
            known = list(self._ids)
            words = (known[token_id] for token_id in question.token_ids if token_id < len(known))
            return Answer(prompt="".join(words))
        texts = [question.prompt or "", *(message.content for message in question.messages or ())]
        found = [word for text in texts for word in words_of(text)]
        token_ids = [self._ids.setdefault(word, len(self._ids)) for word in found]
        return Answer(token_ids=token_ids, token_strs=found if question.return_token_strs else None)


def _prompt_logprobs(request: GenerateRequest) -> list[TokenLogprobs] | None:
    num_top = request.sampling.prompt_logprobs
    words = words_of(request.prompt or "")
    return None if num_top is None else [_certain(*each, num_top) for each in enumerate(words[1:], 1)]


def _certain(token_id: int, word: str, num_top: int) -> TokenLogprobs:
    top = [Logprob(token_id=token_id, logprob=0.0, text=word)] if num_top else []
    return TokenLogprobs(token_id=token_id, logprob=0.0, text=word, rank=1, top=top)
