"""Questions to a model's tokenizer: what a worker knows and a producer does not, without a job.

A question is a string that expires; its id stands in a list that every worker of the model takes from,
also one whose batch is full. Its answer is a list of one item, for which the asker waits. Nothing of it
outlives its time: what nobody took, or nobody waits for any more, is gone by itself, and asking again is
harmless. So there is no state to keep, and no worker to take it over from.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import InvalidRequest, NoAnswer, QueueFull
from pagefleet.api.contract.messages import ChatMessage, ErrorInfo, ModelCard, WorkerStatus
from pagefleet.api.contract.model_cards import check_vocabulary
from pagefleet.api.contract.requests import as_list, as_messages, invalid_request
from pagefleet.api.contract.wire_model import StoredModel
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_store import JobStore

ANSWER_WITHIN_S: Final = 10.0
MAX_WAITING: Final = 256
"""Questions of one model at once; a gateway asks a few of each tenant's at a time."""
MAX_BYTES: Final = 2**18
"""Of one question: an answer has a number for each few bytes of it, and is written and read at once."""
LOOK_AFTER_S: Final = 0.5
"""After so long without an answer the asker looks whether there is a worker at all."""
_TTL_MS: Final = int(ANSWER_WITHIN_S * 1000)

T = TypeVar("T")


class Question(StoredModel):
    """To tokens (``prompt`` or ``messages``) or from tokens (``token_ids``)."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    token_ids: list[int] | None = None
    add_special_tokens: bool | None = None
    """By default a prompt has them, and messages those of the chat template."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class Answer(StoredModel):
    """``prompt`` where the question had token ids, else ``token_ids``; or why there is none."""

    token_ids: list[int] | None = None
    token_strs: list[str] | None = None
    prompt: str | None = None
    error: ErrorInfo | None = None


class TokenizedPrompt(StoredModel):
    """A prompt as its model reads it."""

    model: str
    max_model_len: int
    token_ids: list[int]
    token_strs: list[str] | None = None
    """How the vocabulary spells each of them, where that was asked for."""

    @property
    def count(self) -> int:
        return len(self.token_ids)


def tokenize_question(
    prompt: str | None,
    messages: Sequence[Mapping[str, str]] | None,
    options: Mapping[str, bool | None],
) -> Question:
    """Raises: InvalidRequest."""
    if (prompt is None) == (messages is None):
        raise InvalidRequest("Give exactly one of prompt and messages.", param="prompt")
    given = {name: value for name, value in options.items() if value is not None}
    shaped = None if messages is None else as_messages(messages)
    fields = {"prompt": prompt, "messages": shaped, **given}
    return _checked(lambda: Question.model_validate(fields))


def detokenize_question(token_ids: Sequence[int], card: ModelCard) -> Question:
    """Raises: InvalidRequest."""
    question = _checked(lambda: Question(token_ids=as_list(token_ids)))
    assert question.token_ids is not None
    if any(token_id < 0 for token_id in question.token_ids):
        raise InvalidRequest("token_ids: an id is 0 or more.", param="token_ids")
    check_vocabulary(question.token_ids, card, "token_ids")
    return question


class Asked:
    """One question on its way, as Redis commands; who calls runs them."""

    def __init__(self, question: Question, card: ModelCard) -> None:
        self.question = question
        self._text = question.model_dump_json(exclude_defaults=True)
        self._question_id = uuid.uuid4().hex
        self._name = keys.question(self._question_id)
        self._card = card

    @property
    def waiting_list(self) -> str:
        return keys.questions(self._card.name)

    @property
    def answer_key(self) -> str:
        return keys.answer(self._question_id)

    def check(self, num_waiting: int) -> None:
        """Raises: InvalidRequest, QueueFull. Two askers may count the same: then one more waits."""
        num_bytes = len(self._text.encode())
        if num_bytes > MAX_BYTES:
            raise InvalidRequest(
                f"The question has {num_bytes} bytes; {MAX_BYTES} are allowed.", param="prompt"
            )
        if num_waiting >= MAX_WAITING:
            raise QueueFull(f"{num_waiting} questions to {self._card.name} wait already; try again later.")

    def put(self, pipeline: Any) -> None:
        pipeline.set(self._name, self._text, px=_TTL_MS)
        self.put_id(pipeline)

    def put_id(self, pipeline: Any) -> None:
        pipeline.lpush(self.waiting_list, self._question_id)
        pipeline.pexpire(self.waiting_list, _TTL_MS)

    def look(self, pipeline: Any) -> None:
        """What became of it; for :meth:`is_stranded`."""
        pipeline.lrange(self.waiting_list, 0, -1)
        pipeline.exists(self._name)

    def is_stranded(self, found: Sequence[Any]) -> bool:
        """It was given to a worker that has not read it: one that is frozen, or cut off. Where it reads it
        just now after all, the next one finds nothing to read."""
        waiting, is_unread = found
        return bool(is_unread) and self._question_id not in waiting

    def check_served(self, workers: Sequence[WorkerStatus]) -> None:
        """Raises: NoAnswer."""
        if not any(worker.model == self._card.name for worker in workers):
            raise NoAnswer(f"The model {self._card.name} has no worker right now.")

    def read(self, popped: Sequence[str]) -> Answer:
        """What BLPOP gave. Raises: FleetError: the worker's."""
        answer = Answer.model_validate_json(popped[1])
        if answer.error is not None:
            raise answer.error.to_error("")
        return answer

    def too_late(self) -> NoAnswer:
        return NoAnswer(f"No worker of {self._card.name} answered within {ANSWER_WITHIN_S:.0f} s.")

    def tokenized(self, answer: Answer) -> TokenizedPrompt:
        return TokenizedPrompt(
            model=self._card.name,
            max_model_len=self._card.max_model_len,
            token_ids=answer.token_ids or [],
            token_strs=answer.token_strs,
        )


def ask(store: JobStore, asked: Asked) -> Answer:
    """Waits for the answer. Raises: FleetError: the worker's; NoAnswer, QueueFull, RedisUnavailable."""
    deadline = time.monotonic() + ANSWER_WITHIN_S
    with redis_errors(store.settings.url):
        asked.check(store.redis.llen(asked.waiting_list))
        asked.check_served(store.workers())
        pipeline = store.redis.pipeline(transaction=True)
        asked.put(pipeline)
        pipeline.execute()
        while time.monotonic() < deadline:
            popped = store.redis.blpop([asked.answer_key], timeout=LOOK_AFTER_S)
            if popped is not None:
                return asked.read(popped)
            asked.check_served(store.workers())
            pipeline = store.redis.pipeline(transaction=True)
            asked.look(pipeline)
            if asked.is_stranded(pipeline.execute()):
                asked.put_id(pipeline)
                pipeline.execute()
    raise asked.too_late()


def _checked(build: Callable[[], T]) -> T:
    try:
        return build()
    except ValidationError as error:
        raise invalid_request(error) from None
