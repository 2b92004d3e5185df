"""What every fleet offers a service, whether it is real or a fake: the base class of all clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from pagefleet.api.client.questions import (
    Answer,
    Asked,
    TokenizedPrompt,
    detokenize_question,
    tokenize_question,
)
from pagefleet.api.client.token_stream import TokenStream
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.keys import Lane
from pagefleet.api.contract.messages import ModelCard, SamplingOptions
from pagefleet.api.contract.requests import as_list, as_messages
from pagefleet.api.contract.structured_outputs import StructuredOptions

DEFAULT_TIMEOUT_S = 600.0
"""How long a stream waits for its next chunk before it raises ``StreamTimeout``."""


class Fleet(ABC):
    """Send work to a fleet and read its tokens.

    ``generate`` and ``chat`` check the request here and now: a wrong one raises a
    :class:`~pagefleet.api.contract.errors.FleetError` and nothing is enqueued.
    """

    def generate(
        self,
        prompt: str | None = None,
        *,
        model: str | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        prefix_cache: bool | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> TokenStream:
        """Continues a text (or token ids).

        Args:
            prompt: the text; or ``prompt_token_ids``, exactly one of them.
            model: name or alias; may be left out where the fleet knows one model only.
            job_id: makes the call idempotent: a second one with the same id reads the first one's job; with
                other arguments it raises ``JobExists``.
            lane: ``batch`` fills what ``interactive`` leaves.
            priority: 0..9 within the lane, 9 is the most urgent.
            deadline_s: seconds from now after which the job is given up; its stream then ends with
                finish_reason ``deadline``.
            detached: the job goes on where this process is gone. By default a job of the batch lane does,
                and one of the interactive lane is cancelled after 10 s without its client.
            tenant: on whose behalf; the number of choices in one tenant's open jobs may be limited.
            result_ttl_s: how long the job can be read after its end; by default an hour. The model's workers
                bound it (``max_result_ttl_s``, by default seven days).
            truncate_prompt_tokens: only the last so many tokens of the prompt count.
            cache_salt: the job shares computed prefixes with jobs of the same salt only.
            prefix_cache: False computes the whole prompt and keeps nothing of it for other jobs.
            structured_outputs: what the text must be: one of json_schema, json_object, regex, choice and
                grammar. A schema that is wrong, impossible or not to be kept ends the job with
                ``InvalidRequest``.
            timeout: seconds without a chunk after which the stream raises ``StreamTimeout``.
            sampling: see :class:`~pagefleet.api.contract.messages.SamplingParams`.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, JobExists, QueueFull, RedisUnavailable.
        """
        fields = {
            "prompt": prompt,
            "prompt_token_ids": as_list(prompt_token_ids),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "prefix_cache": prefix_cache,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return self._start(job_id, fields, timeout)

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        model: str | None = None,
        job_id: str | None = None,
        lane: Lane = "interactive",
        priority: int = 5,
        deadline_s: float | None = None,
        detached: bool | None = None,
        tenant: str | None = None,
        result_ttl_s: int | None = None,
        truncate_prompt_tokens: int | None = None,
        cache_salt: str | None = None,
        prefix_cache: bool | None = None,
        structured_outputs: StructuredOptions | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        **sampling: Unpack[SamplingOptions],
    ) -> TokenStream:
        """Answers a conversation through the model's chat template. Arguments as for :meth:`generate`."""
        fields = {
            "messages": as_messages(messages),
            "model": model,
            "lane": lane,
            "priority": priority,
            "deadline_s": deadline_s,
            "detached": detached,
            "tenant": tenant,
            "result_ttl_s": result_ttl_s,
            "truncate_prompt_tokens": truncate_prompt_tokens,
            "cache_salt": cache_salt,
            "prefix_cache": prefix_cache,
            "structured_outputs": structured_outputs,
            **sampling,
        }
        return self._start(job_id, fields, timeout)

    @abstractmethod
    def _start(self, job_id: str | None, fields: Mapping[str, Any], timeout: float | None) -> TokenStream: ...

    @abstractmethod
    def attach(
        self, job_id: str, *, after: int = 0, timeout: float | None = DEFAULT_TIMEOUT_S
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
