"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from pagefleet.api.client.stream import Chunk
from pagefleet.api.contract.logprobs import TokenLogprobs
from pagefleet.api.contract.messages import ChoiceResult, JobResult, ModelCard
from pagefleet.api.gateway.answers.answer import start
from pagefleet.api.gateway.answers.generation_body import GenerationBody, StreamOptions
from pagefleet.api.gateway.answers.job_ids import MAX_PROMPTS
from pagefleet.api.gateway.answers.shape import Shape, fingerprint_text, finish_fields
from pagefleet.api.gateway.context import caller_of
from pagefleet.api.gateway.http.body import read_body, refuse
from pagefleet.api.gateway.http.errors import ApiError
from pagefleet.api.gateway.openai.logprobs import completion_logprobs, prompt_fields
from pagefleet.api.gateway.openai.token_places import token_places

PREFIX: Final = "cmpl"
_DEFAULT_MAX_TOKENS: Final = 16
"""The default of this endpoint in OpenAI's API and in vLLM."""
_UNSUPPORTED: Final = {"suffix": "not supported; remove it"}
_MAX_CHOICES: Final = 1024

Prompt = str | list[int]


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _as_prompts(value: Any) -> list[Prompt]:
    """Return a list of prompts from a text, a list of token ids, or a list of either."""
    if isinstance(value, str) or _is_token_ids(value):
        return [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")
    if not all(isinstance(each, str) or _is_token_ids(each) for each in value):
        raise PydanticCustomError(
            "prompt", "must be a text, a list of token ids, or a list of either; token ids cannot be empty"
        )
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError(
            "prompt", "more than {limit} prompts in one request", {"limit": MAX_PROMPTS}
        )
    return value


_Given = str | list[int] | list[str] | list[list[int]]


class CompletionBody(GenerationBody):
    prompt: Annotated[list[Prompt], BeforeValidator(_as_prompts, json_schema_input_type=_Given)]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    @property
    def names(self) -> Mapping[str, str]:
        of_echo = {"prompt_logprobs": "logprobs"} if self.echo and self.prompt_logprobs is None else {}
        return {**super().names, **of_echo}

    def job_fields(self, card: ModelCard) -> dict[str, Any]:
        fields = super().job_fields(card)
        if self.echo:
            fields["echo"] = True
            if self.logprobs is not None:
                # As in OpenAI's API, an echoed prompt has logprobs too.
                fields.setdefault("prompt_logprobs", self.logprobs)
        return fields

    def jobs(self) -> list[dict[str, Any]]:
        """Return the fields of each prompt's job. Raises: ApiError."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(
                400,
                "best_of: answers are not ranked; remove it, or set it to n.",
                param="best_of",
                code="unsupported_parameter",
            )
        if len(self.prompt) * max(1, self.n or 1) > _MAX_CHOICES:
            raise ApiError(
                400,
                f"n: the limit is {_MAX_CHOICES} choices per request.",
                param="n",
                code="invalid_value",
            )
        names = ["prompt" if isinstance(each, str) else "prompt_token_ids" for each in self.prompt]
        return [{name: each} for name, each in zip(names, self.prompt, strict=True)]


class CompletionShape(Shape):
    __slots__ = ()
    chunk_object: ClassVar[str] = "text_completion"
    whole_object: ClassVar[str] = "text_completion"

    def opening(self, choice: int) -> None:
        return None

    def tokens(self, choice: int, chunk: Chunk, delta: Mapping[str, Any] | None = None) -> dict[str, Any]:
        fields = _choice(choice, chunk.text)
        if chunk.logprobs is not None:
            fields["logprobs"] = self._logprobs(
                chunk.logprobs, chunk.text, chunk.prompt_logprobs, chunk.text_offset
            )
        if self.wants_token_ids:
            fields["token_ids"] = chunk.token_ids
        return {**fields, **prompt_fields(chunk)}

    def finish(self, choice: int) -> dict[str, Any]:
        return _choice(choice, "")

    def choice(self, choice: int, result: ChoiceResult, job: JobResult) -> dict[str, Any]:
        fields = {**_choice(choice, result.text), **finish_fields(result.finish_reason, result.stop_reason)}
        if result.logprobs is not None:
            fields["logprobs"] = self._logprobs(result.logprobs, result.text, job.prompt_logprobs, 0)
        if self.wants_token_ids:
            fields["token_ids"] = result.token_ids
        return {**fields, **prompt_fields(job)}

    def _logprobs(
        self, tokens: list[TokenLogprobs], text: str, prompt: list[TokenLogprobs] | None, text_offset: int
    ) -> dict[str, Any]:
        """The first token of an echoed prompt has no logprobs: its text is what precedes the second token."""
        is_echo = self.echo and prompt is not None
        known = [*(prompt or ()), *tokens] if is_echo else tokens
        places = [text_offset + place for place in token_places(known, text)]
        if not is_echo:
            return completion_logprobs(known, places)
        first = text[: places[0] - text_offset] if places else text
        return completion_logprobs([first, *known], [text_offset, *places])


def _choice(choice: int, text: str) -> dict[str, Any]:
    return {"index": choice, "text": text, "logprobs": None, "finish_reason": None}


async def create(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, CompletionBody, gateway.settings)
    refuse(body, _UNSUPPORTED)
    body.check()
    answer, card = await start(gateway, key, body, body.jobs(), PREFIX, _DEFAULT_MAX_TOKENS)
    shape = CompletionShape(
        answer.answer_id,
        card.name,
        echo=bool(body.echo),
        wants_token_ids=bool(body.return_token_ids),
        fingerprint=fingerprint_text(card.fingerprint),
        names=body.names,
    )
    if body.stream:
        return answer.stream(shape, body.stream_options or StreamOptions())
    if body.background:
        return await answer.later()
    return await answer.whole(request, shape)
