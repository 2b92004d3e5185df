"""Questions to a model's tokenizer, which workers have and producers do not. They create no job.

A question is a string with an expiry. Its id is in a list that all workers of the model take from, even
those whose batch is full. The answer is a list of one item, for which the client waits. Everything expires:
a question that no worker took, and an answer that no client waits for. Asking again is harmless, so there is
no state to keep and none for another worker to take over.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from pagefleet.api.chat.chat_messages import conversation_of
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import InvalidRequest, NoAnswer, QueueFull
from pagefleet.api.contract.messages import ChatMessage, ErrorInfo, ModelCard, WorkerStatus
from pagefleet.api.contract.model_cards import check_vocabulary
from pagefleet.api.contract.requests import as_list, invalid_request
from pagefleet.api.contract.wire_model import StoredModel

ANSWER_WITHIN_S: Final = 10.0
MAX_WAITING: Final = 256
"""Questions of one model that wait at the same time. A gateway asks a few of each tenant's at a time."""
MAX_BYTES: Final = 2**18
"""Size of one question. The answer has a number for each few bytes, and is written and read as a whole."""
LOOK_AFTER_S: Final = 0.5
"""After this time without an answer, the client checks that the model still has a worker."""
_TTL_MS: Final = int(ANSWER_WITHIN_S * 1000)

T = TypeVar("T")


class Question(StoredModel):
    """Tokenize a ``prompt`` or ``messages``, or detokenize ``token_ids``."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    token_ids: list[int] | None = None
    add_special_tokens: bool | None = None
    """By default a prompt gets them, and messages have those of the chat template."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class Answer(StoredModel):
    """``prompt`` for a question with token ids, else ``token_ids``. Or ``error``."""

    token_ids: list[int] | None = None
    token_strs: list[str] | None = None
    prompt: str | None = None
    error: ErrorInfo | None = None


class TokenizedPrompt(StoredModel):
    """The tokens of a prompt, special ones included."""

    model: str
    max_model_len: int
    token_ids: list[int]
    token_strs: list[str] | None = None
    """Each token as the vocabulary spells it, if the request asked for it."""

    @property
    def count(self) -> int:
        return len(self.token_ids)


def tokenize_question(
    prompt: str | None,
    messages: Sequence[ChatMessage | Mapping[str, Any]] | None,
    options: Mapping[str, bool | None],
) -> Question:
    """Raises: InvalidRequest."""
    if (prompt is None) == (messages is None):
        raise InvalidRequest("prompt: give either prompt or messages.", param="prompt")
    given = {name: value for name, value in options.items() if value is not None}
    shaped = None if messages is None else conversation_of(messages)
    fields = {"prompt": prompt, "messages": shaped, **given}
    return _checked(lambda: Question.model_validate(fields))


def detokenize_question(token_ids: Sequence[int], card: ModelCard) -> Question:
    """Raises: InvalidRequest."""
    question = _checked(lambda: Question(token_ids=as_list(token_ids)))
    assert question.token_ids is not None
    if any(token_id < 0 for token_id in question.token_ids):
        raise InvalidRequest("token_ids: an id cannot be negative.", param="token_ids")
    check_vocabulary(question.token_ids, card, "token_ids")
    return question


class PendingQuestion:
    """A question that waits for its answer, as Redis commands. The caller runs them."""

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
        """Raises: InvalidRequest, QueueFull. Clients that check at the same moment may exceed the limit."""
        num_bytes = len(self._text.encode())
        if num_bytes > MAX_BYTES:
            raise InvalidRequest(
                f"prompt: the question has {num_bytes} bytes; at most {MAX_BYTES} are allowed.",
                param="prompt",
            )
        if num_waiting >= MAX_WAITING:
            raise QueueFull(
                f"Model {self._card.name} has {num_waiting} waiting questions, its limit; try again later."
            )

    def put(self, pipeline: Any) -> None:
        pipeline.set(self._name, self._text, px=_TTL_MS)
        self.put_id(pipeline)

    def put_id(self, pipeline: Any) -> None:
        pipeline.lpush(self.waiting_list, self._question_id)
        pipeline.pexpire(self.waiting_list, _TTL_MS)

    def look(self, pipeline: Any) -> None:
        """Read the question's state, for :meth:`is_stranded`."""
        pipeline.lrange(self.waiting_list, 0, -1)
        pipeline.exists(self._name)

    def is_stranded(self, found: Sequence[Any]) -> bool:
        """Return whether a worker took the question and did not read it, because it is frozen or cut off. If
        it reads the question at this moment, the next worker finds nothing to read."""
        waiting, is_unread = found
        return bool(is_unread) and self._question_id not in waiting

    def check_served(self, workers: Sequence[WorkerStatus]) -> None:
        """Raises: NoAnswer."""
        if not any(worker.model == self._card.name for worker in workers):
            raise NoAnswer(f"The model {self._card.name} has no worker now.")

    def read(self, popped: Sequence[str]) -> Answer:
        """Return the answer that BLPOP popped. Raises: FleetError: the worker's."""
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


def _checked(build: Callable[[], T]) -> T:
    try:
        return build()
    except ValidationError as error:
        raise invalid_request(error) from None
