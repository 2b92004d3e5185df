"""QuestionDesk: answers what producers ask a model's tokenizer (api/client/questions.py), beside the batch.

A worker without room for another job answers all the same: a question takes no seat and no block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import redis
from pydantic import ValidationError

from pagefleet.api.chat.conversation import template_inputs
from pagefleet.api.client.questions import ANSWER_WITHIN_S, Answer, Question
from pagefleet.api.contract import keys
from pagefleet.api.contract.errors import (
    FleetError,
    InvalidRequest,
    JobFailed,
    ProtocolError,
    RedisUnavailable,
)
from pagefleet.api.contract.messages import ErrorInfo, ModelCard
from pagefleet.api.protocol.connection import redis_errors
from pagefleet.api.protocol.job_store import JobStore
from pagefleet.engine import InvalidRequestError
from pagefleet.engine.text.tokenizer import Tokenizer
from pagefleet.workers.prompting.prompt import fleet_error
from pagefleet.workers.threads.loop_thread import LoopThread

logger = logging.getLogger(__name__)

_WAIT_S: Final = 0.5
"""For a question, before it is looked whether this worker still may answer: how much later it may leave."""
_ANSWER_TTL_MS: Final = int(ANSWER_WITHIN_S * 1000)


class QuestionDesk:
    """
    Args:
        may_answer: false where this worker is not trusted to be alive: another one is to answer then.
    """

    def __init__(
        self, store: JobStore, card: ModelCard, tokenizer: Tokenizer, may_answer: Callable[[], bool]
    ) -> None:
        self._store = store
        self._questions = keys.questions(card.name)
        self._tool_parser = card.tool_parser
        self._tokenizer = tokenizer
        self._may_answer = may_answer
        self._stopping = threading.Event()
        self._thread = LoopThread("questions", self._run)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Takes no further question; returns at once."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._may_answer():
                    self._stopping.wait(_WAIT_S)
                    continue
                self._answer_next()
            except RedisUnavailable as error:
                logger.debug("no questions without Redis: %s", error)
                self._stopping.wait(_WAIT_S)
            except (ProtocolError, redis.RedisError) as error:
                # A command's arguments stand in redis-py's errors: questions and answers.
                logger.error("no questions this time: %s", type(error).__name__)
                self._stopping.wait(_WAIT_S)

    def _answer_next(self) -> None:
        server = self._store.redis
        with redis_errors(self._store.settings.url):
            popped = server.brpop([self._questions], timeout=_WAIT_S)
            if popped is None:
                return
            name = keys.question(popped[1])
            pipeline = server.pipeline(transaction=True)
            pipeline.get(name)
            pipeline.delete(name)
            text = pipeline.execute()[0]
            if text is None:
                # Nobody waits for it any more.
                return
            pipeline = server.pipeline(transaction=True)
            pipeline.lpush(keys.answer(popped[1]), self._spelled(text))
            pipeline.pexpire(keys.answer(popped[1]), _ANSWER_TTL_MS)
            pipeline.execute()

    def _spelled(self, text: str) -> str:
        try:
            return self.answer(text).model_dump_json(exclude_defaults=True)
        except ValueError as error:
            logger.error("an answer could not be spelled: %s", type(error).__name__)
            failure = JobFailed("The tokenizer's answer cannot be said in JSON.")
            return Answer(error=ErrorInfo.from_error(failure)).model_dump_json(exclude_defaults=True)

    def answer(self, text: str) -> Answer:
        begun_at = time.monotonic()
        try:
            return self._look_up(_parse(text))
        except FleetError as error:
            return Answer(error=ErrorInfo.from_error(error))
        except Exception as error:  # noqa: BLE001
            # A tokenizer or a template is not ours. Its words may quote the prompt: not for the log.
            logger.error("a question could not be answered: %s", type(error).__name__)
            return Answer(error=ErrorInfo.from_error(JobFailed("The tokenizer failed on this text.")))
        finally:
            logger.debug("a question of %d bytes took %.3f s", len(text), time.monotonic() - begun_at)

    def _look_up(self, question: Question) -> Answer:
        if question.token_ids is not None:
            return Answer(prompt=self._tokenizer.decode(question.token_ids, skip_special_tokens=False))
        try:
            token_ids = self._encode(question)
        except InvalidRequestError as error:
            raise fleet_error(error) from error
        names = map(self._tokenizer.token_name, token_ids)
        return Answer(token_ids=token_ids, token_strs=list(names) if question.return_token_strs else None)

    def _encode(self, question: Question) -> list[int]:
        if question.messages is None:
            special = True if question.add_special_tokens is None else question.add_special_tokens
            return self._tokenizer.encode(question.prompt or "", add_special_tokens=special)
        # Without tools there is one way.
        (told,) = template_inputs(question.messages, None, self._tool_parser)
        token_ids = self._tokenizer.apply_chat_template(
            told.messages, add_generation_prompt=question.add_generation_prompt
        )
        if not question.add_special_tokens:
            return token_ids
        # vLLM's: the text of the template as a text like any other.
        text = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return self._tokenizer.encode(text, add_special_tokens=True)


def _parse(text: str) -> Question:
    try:
        return Question.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequest(f"The question cannot be read: {error.error_count()} faults.") from None
