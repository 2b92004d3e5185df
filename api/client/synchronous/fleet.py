# Generated from api/client/asynchronous/fleet.py by `make sync-client`; do not edit.
"""Fleet: the interface of every fleet, real or fake."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Never, Unpack

from pagefleet.api.chat.chat_messages import conversation_of
from pagefleet.api.client.job_options import (
    CHAT_ARGUMENTS,
    DEFAULT_IDLE_TIMEOUT_S,
    JobArguments,
    JobOptions,
    job_arguments,
)
from pagefleet.api.client.questions import (
    Answer,
    PendingQuestion,
    TokenizedPrompt,
    detokenize_question,
    tokenize_question,
)
from pagefleet.api.client.synchronous.context import ClientContext, opens_stream
from pagefleet.api.client.synchronous.token_stream import TokenStream
from pagefleet.api.contract.errors import FleetError, RedisUnavailable, UnknownModel
from pagefleet.api.contract.fleet_status import FleetStatus
from pagefleet.api.contract.messages import ChatMessage, ModelCard, WorkerStatus
from pagefleet.api.contract.requests import as_list
from pagefleet.api.protocol.job_record import JobRecord


class Fleet(ClientContext):
    """Send work to a fleet and read its tokens.

    ``generate`` and ``chat`` check the request before they send it: an invalid one raises a
    :class:`~pagefleet.api.contract.errors.FleetError` and is not enqueued.
    """

    @opens_stream
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
            prompt_token_ids: the token ids, instead of ``prompt``.
            options: see :class:`~pagefleet.api.client.job_options.JobOptions`.

        Raises:
            InvalidRequest, ContextTooLong, UnknownModel, JobExists, QueueFull, RedisUnavailable.
        """
        ids = as_list(prompt_token_ids)
        return self._start(*job_arguments(options, prompt=prompt, prompt_token_ids=ids))

    @opens_stream
    def chat(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **options: Unpack[JobOptions],
    ) -> TokenStream:
        """Answer a conversation through the model's chat template.

        The result has the answer as ``content``, ``reasoning`` and ``tool_calls``, and as a ``message`` to
        append to the conversation. ``text``, like the stream's chunks, is all that the model wrote.

        Args:
            messages: as in OpenAI's API, each with ``role`` and ``content``; an assistant's may have
                ``tool_calls``, and one of role ``tool`` needs its ``tool_call_id``.
            tools: the functions that the model may call, as in OpenAI's API.
            tool_choice: ``auto`` (default), ``none``, ``required``, or
                ``{"type": "function", "function": {"name": ...}}``.
            parallel_tool_calls: False allows one call in each choice.
            options: see :class:`~pagefleet.api.client.job_options.JobOptions`.

        Raises: as :meth:`generate`.
        """
        return self._start(
            *self._chat_arguments(
                options,
                messages,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
            )
        )

    def submit_many(
        self, requests: Iterable[str | Mapping[str, Any]], **options: Unpack[JobOptions]
    ) -> list[TokenStream | FleetError]:
        """Submit many jobs with few round trips, and return their streams in the order of the requests.

        A request that is invalid or refused does not stop the others: its place has the error.

        Args:
            requests: each a text to continue, or a mapping with arguments of :meth:`generate` or, if it has
                ``messages``, of :meth:`chat`.
            options: for all requests; a mapping's own arguments come first.

        Raises:
            RedisUnavailable: the models cannot be read, and no job was submitted.
        """
        return self._start_all([self._arguments_or_error(each, options) for each in requests])

    def _arguments_or_error(
        self, request: str | Mapping[str, Any], options: Mapping[str, Any]
    ) -> JobArguments | FleetError:
        given = {**options, **({"prompt": request} if isinstance(request, str) else request)}
        try:
            if "messages" in given:
                chat = {name: given.pop(name, None) for name in CHAT_ARGUMENTS}
                return self._chat_arguments(given, given.pop("messages"), **chat)
            ids = as_list(given.pop("prompt_token_ids", None))
            return job_arguments(given, prompt=given.pop("prompt", None), prompt_token_ids=ids)
        except RedisUnavailable:
            raise
        except FleetError as error:
            return error

    def _chat_arguments(
        self, options: Mapping[str, Any], messages: Sequence[ChatMessage | Mapping[str, Any]], **tools: Any
    ) -> JobArguments:
        # Imported here because it imports all notations of tool calls, which not every service needs.
        from pagefleet.api.chat.chat_request import chat_fields, check_chat_fields

        job_id, fields, idle_timeout = job_arguments(options, messages=conversation_of(messages), **tools)
        model = fields.get("model")
        try:
            card = self.card(model if isinstance(model, str) else None)
        except UnknownModel:
            # Errors in the fields are more useful than an unknown model.
            check_chat_fields(fields)
            raise
        return JobArguments(job_id, chat_fields(fields, card), idle_timeout)

    @abstractmethod
    def _start_all(self, calls: Sequence[JobArguments | FleetError]) -> list[TokenStream | FleetError]: ...

    @abstractmethod
    def _start(
        self, job_id: str | None, fields: Mapping[str, Any], idle_timeout: float | None
    ) -> TokenStream: ...

    @abstractmethod
    @opens_stream
    def attach(
        self,
        job_id: str,
        *,
        after: int | Sequence[int] = 0,
        idle_timeout: float | None = DEFAULT_IDLE_TIMEOUT_S,
        keep: bool = True,
        **unknown: Never,
    ) -> TokenStream:
        """Read any job from any process, also after it has ended.

        Args:
            after: how many tokens of each choice to skip: one number for all choices, or one for each.
            idle_timeout: seconds without a chunk after which the stream raises ``StreamTimeout``.
            keep: False if ``result()`` will not be called. The stream then keeps no token that it has given.

        Raises:
            JobNotFound: there is no such job, or its result has expired.
        """

    @abstractmethod
    def job(self, job_id: str, *, with_log: bool = True) -> JobRecord:
        """Return what the server has of a job now. Raises: JobNotFound."""

    @abstractmethod
    def cancel(self, job_id: str) -> bool:
        """Stop a job. Returns False if it had ended already. Raises: JobNotFound."""

    @abstractmethod
    def delete(self, job_id: str) -> None:
        """Remove a job, its prompt, its tokens and its result. A job that has not ended is stopped first.

        Raises: JobNotFound.
        """

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage | Mapping[str, Any]] | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        add_generation_prompt: bool = True,
        return_token_strs: bool = False,
    ) -> TokenizedPrompt:
        """Return the token ids of a text, or of a conversation in the model's chat template. A worker of the
        model answers, even if it has no room for another job. No job is created.

        Args:
            add_special_tokens: add the tokens that the model expects around a text. By default they are added
                to a prompt, and messages have those of the template.
            add_generation_prompt: end the conversation with the beginning of the assistant's next message.
            return_token_strs: also return each token as the vocabulary spells it.

        Raises:
            InvalidRequest, UnknownModel, NoAnswer, QueueFull, RedisUnavailable.
        """
        options = {
            "add_special_tokens": add_special_tokens,
            "add_generation_prompt": add_generation_prompt,
            "return_token_strs": return_token_strs,
        }
        question, card = tokenize_question(prompt, messages, options), self.card(model)
        pending = PendingQuestion(question, card)
        return pending.tokenized(self._ask(pending))

    def detokenize(self, token_ids: Sequence[int], *, model: str | None = None) -> str:
        """Return the text of tokens. Special tokens are spelled out.

        Raises: as :meth:`tokenize`.
        """
        card = self.card(model)
        answer = self._ask(PendingQuestion(detokenize_question(token_ids, card), card))
        return answer.prompt or ""

    @abstractmethod
    def _ask(self, question: PendingQuestion) -> Answer: ...

    @abstractmethod
    def card(self, model: str | None) -> ModelCard:
        """Return the card of a name or an alias; with None, of the only model. Raises: UnknownModel."""

    @abstractmethod
    def models(self) -> list[ModelCard]: ...

    @abstractmethod
    def workers(self) -> list[WorkerStatus]:
        """Return the workers whose lease is alive."""

    @abstractmethod
    def status(self) -> FleetStatus: ...
