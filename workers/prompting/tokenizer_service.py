"""TokenizerService: answer producers' questions to the tokenizer (api/client/questions.py).

Questions bypass the engine and need no capacity, so that a full worker answers them too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import redis
from pydantic import ValidationError
from redis.backoff import EqualJitterBackoff

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
"""How long to wait for a question before checking again whether this worker may answer. It delays a shutdown
by at most this time."""
_BACKOFF: Final = EqualJitterBackoff(cap=0.5, base=0.1)
_MAX_EXPONENT: Final = 10
_ANSWER_TTL_MS: Final = int(ANSWER_WITHIN_S * 1000)


class TokenizerService:
    """Answers questions in a separate thread.

    Args:
        may_answer: whether this worker has a valid lease and is not shutting down. Other workers answer
            otherwise.
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
        """Take no further questions. Returns at once."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            if not self._may_answer():
                self._stopping.wait(_WAIT_S)
                continue
            try:
                self._answer_next()
            except RedisUnavailable as error:
                logger.debug("questions wait, Redis is unavailable: %s", error)
            except (ProtocolError, redis.RedisError) as error:
                # The text of redis-py's errors may contain the question or the answer.
                logger.error("a question was not answered: %s", type(error).__name__)
            else:
                num_failures = 0
                continue
            self._stopping.wait(_BACKOFF.compute(num_failures))
            num_failures = min(num_failures + 1, _MAX_EXPONENT)

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
                # The client no longer waits for the answer.
                return
            pipeline = server.pipeline(transaction=True)
            pipeline.lpush(keys.answer(popped[1]), self._encoded_answer(text))
            pipeline.pexpire(keys.answer(popped[1]), _ANSWER_TTL_MS)
            pipeline.execute()

    def _encoded_answer(self, text: str) -> str:
        try:
            return self.answer(text).model_dump_json(exclude_defaults=True)
        except ValueError as error:
            logger.error("the answer to a question cannot be encoded as JSON: %s", type(error).__name__)
            failure = JobFailed("The tokenizer's answer cannot be encoded as JSON.")
            return Answer(error=ErrorInfo.from_error(failure)).model_dump_json(exclude_defaults=True)

    def answer(self, text: str) -> Answer:
        started_at = time.monotonic()
        try:
            return self._look_up(_parse(text))
        except FleetError as error:
            return Answer(error=ErrorInfo.from_error(error))
        except Exception as error:  # noqa: BLE001
            # Tokenizers and templates come with the model. Their errors may quote the prompt.
            logger.error("a question could not be answered: %s", type(error).__name__)
            return Answer(
                error=ErrorInfo.from_error(
                    JobFailed(f"The tokenizer failed on this text ({type(error).__name__}).")
                )
            )
        finally:
            logger.debug("a question of %d bytes took %.3f s", len(text), time.monotonic() - started_at)

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
        # Without tools there is exactly one variant.
        (variant,) = template_inputs(question.messages, None, self._tool_parser)
        token_ids = self._tokenizer.apply_chat_template(
            variant.messages, add_generation_prompt=question.add_generation_prompt
        )
        if not question.add_special_tokens:
            return token_ids
        # As in vLLM: encode the rendered template like any other text.
        text = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return self._tokenizer.encode(text, add_special_tokens=True)


def _parse(text: str) -> Question:
    try:
        return Question.model_validate_json(text)
    except ValidationError as error:
        raise InvalidRequest(f"The question is invalid: {error.error_count()} fields are wrong.") from None
