"""What every fleet offers a service, whether it is real or a fake: the base class of all clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from pagefleet.api.client.job_options import DEFAULT_IDLE_TIMEOUT_S, JobOptions, job_arguments
from pagefleet.api.client.questions import (
    Answer,
    Asked,
    TokenizedPrompt,
    detokenize_question,
    tokenize_question,
)
from pagefleet.api.client.token_stream import TokenStream
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import ModelCard
from pagefleet.api.contract.requests import as_list, as_messages


class Fleet(ABC):
    """Send work to a fleet and read its tokens.

    ``generate`` and ``chat`` check the request here and now: a wrong one raises a
    :class:`~pagefleet.api.contract.errors.FleetError` and nothing is enqueued.
    """

    def generate(
        self,
        prompt: str | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        **options: Unpack[JobOptions],
    ) -> TokenStream:
        """Continue a text or token ids.

        Args:
            prompt: the text.
            prompt_token_ids: the token ids, in place of ``prompt``.
            options: see :class:`~pagefleet.api.client.job_options.JobOptions`.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, JobExists, QueueFull, RedisUnavailable.
        """
        return self._start(*job_arguments(options, prompt=prompt, prompt_token_ids=as_list(prompt_token_ids)))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Unpack[JobOptions]) -> TokenStream:
        """Answer a conversation through the model's chat template.

        Args:
            messages: each with ``role`` and ``content``.
            options: see :class:`~pagefleet.api.client.job_options.JobOptions`.

        Raises: as :meth:`generate`.
        """
        return self._start(*job_arguments(options, messages=as_messages(messages)))

    @abstractmethod
    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream: ...

    @abstractmethod
    def attach(
        self, job_id: str, *, after: int = 0, idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S
    ) -> TokenStream:
        """Reads any job from any process, also after it has ended, from token ``after`` on.

        Raises:
            JobNotFound: there is no such job (any more).
        """

    @abstractmethod
    def cancel(self, job_id: str) -> bool:
        """Stops a job; false where it had ended already. Raises: JobNotFound."""

    @abstractmethod
    def delete(self, job_id: str) -> None:
        """Removes a job, its prompt, its tokens and its result; stops it first where it has not ended.

        Raises: JobNotFound.
        """

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
        return_token_strs: bool = False,
    ) -> TokenizedPrompt:
        """The token ids of a text, or of a conversation in the model's chat template. A worker of the model
        looks them up, also one that has no room for another job; no job comes of it.

        Args:
            add_special_tokens: those that the model expects around a text; by default a prompt has them, and
                messages have those of the template.
            add_generation_prompt: the conversation ends where the assistant's next message begins.
            return_token_strs: also how the vocabulary spells each token.

        Raises:
            InvalidRequest, UnknownModel, NoAnswer, QueueFull, RedisUnavailable.
        """
        options = {
            "add_special_tokens": add_special_tokens,
            "add_generation_prompt": add_generation_prompt,
            "return_token_strs": return_token_strs,
        }
        question, card = tokenize_question(prompt, messages, options), self._card(model)
        asked = Asked(question, card)
        return asked.tokenized(self._ask(asked))

    def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """The text of tokens, special ones as they are written.

        Raises: as :meth:`tokenize`.
        """
        card = self._card(model)
        asked = Asked(detokenize_question(token_ids, card), card)
        return self._ask(asked).prompt or ""

    @abstractmethod
    def _card(self, model: str | None) -> ModelCard:
        """Raises: UnknownModel."""

    @abstractmethod
    def _ask(self, asked: Asked) -> Answer: ...

    @abstractmethod
    def models(self) -> list[ModelCard]: ...

    @abstractmethod
    def status(self) -> FleetStatus: ...

    @abstractmethod
    def close(self) -> None: ...
