"""Answer: from checked requests to the jobs of one answer, and from their tokens to a response.

What both generating endpoints do, in this order: the model, the limits, the jobs, at most a second for a
worker's word, then the stream or the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.errors import FleetError
from pagefleet.api.gateway import sse
from pagefleet.api.gateway.api_keys import ApiKey
from pagefleet.api.gateway.authentication import check_model, tenant_of
from pagefleet.api.gateway.body import ignored_headers
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.errors import ApiError
from pagefleet.api.gateway.event_stream import EventStream, disconnected
from pagefleet.api.gateway.generation_body import GenerationBody
from pagefleet.api.gateway.job_ids import jobs_of, new_id
from pagefleet.api.gateway.rate_limit import ESTIMATED_TOKENS, rate_headers
from pagefleet.api.gateway.relay import Relay
from pagefleet.api.gateway.shape import Shape
from pagefleet.api.gateway.together import together
from pagefleet.api.messages import JobResult, ModelCard
from pagefleet.api.token_stream import AsyncTokenStream

JOB_HEADER: Final = "x-pagefleet-job"
_ACCEPT_WITHIN_S: Final = 1.0
_CHARS_PER_TOKEN: Final = 4
"""Of English text, on average."""


@dataclass(slots=True)
class Answer:
    """The jobs of one request that this process follows."""

    gateway: Gateway
    key: ApiKey
    answer_id: str
    streams: list[AsyncTokenStream]
    num_choices: int
    background: bool
    reserved: int
    headers: dict[str, str] = field(default_factory=dict)
    _settled: bool = False

    async def accepted(self) -> None:
        """Waits for the workers' word, a second at most. Raises: FleetError: a job was rejected."""
        await together(stream.accepted(_ACCEPT_WITHIN_S) for stream in self.streams)

    def stream(self, shape: Shape, *, include_usage: bool, can_return: bool) -> Response:
        """
        Args:
            can_return: see :class:`Relay`.
        """
        position = sse.Position(
            [0] * (len(self.streams) * self.num_choices), include_usage, shape.wants_token_ids
        )
        relay = Relay(
            self.streams,
            self.num_choices,
            shape,
            position,
            self.gateway.settings.gateway_keep_alive_s,
            can_return=can_return,
        )
        return EventStream(self.gateway, relay, self.headers, self.on_gone, self.end)

    async def whole(self, request: Request, shape: Shape) -> Response:
        """Raises: ApiError (408), FleetError."""
        results = asyncio.ensure_future(self._results())
        gone = asyncio.ensure_future(disconnected(request.receive))
        any_of: set[asyncio.Future[Any]] = {results, gone, self.gateway.leaving}
        try:
            await asyncio.wait(
                any_of,
                timeout=self.gateway.settings.gateway_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not results.done():
                results.cancel()
                await asyncio.gather(results, return_exceptions=True)
                await self.on_gone()
                raise self._too_late()
            return JSONResponse(shape.whole(results.result()), headers=self.headers)
        finally:
            for task in (results, gone):
                task.cancel()
            await asyncio.gather(results, gone, return_exceptions=True)
            await self.end()

    async def later(self) -> Response:
        """The answer to who does not wait for it."""
        self._settled = True
        await self.end()
        place = f"/v1/jobs/{self.answer_id}"
        body = {"id": self.answer_id, "object": "job", "status": "queued"}
        return JSONResponse(body, 202, {**self.headers, "location": place})

    async def cancel(self) -> None:
        for stream in self.streams:
            with suppress(FleetError):
                await stream.cancel()

    async def on_gone(self) -> None:
        """Nobody reads any more."""
        if self.background:
            # Who knows how much is still to come: what was reserved is what it costs.
            self._settled = True
        else:
            await self._leave()

    async def _leave(self) -> None:
        for stream in self.streams:
            with suppress(FleetError):
                await stream.close()
                await self.gateway.fleet.abandon(stream.job_id)

    async def end(self) -> None:
        """Stops listening, and settles what was used with what was reserved."""
        if not self._settled:
            self._settled = True
            used = sum((stream.num_prompt_tokens or 0) + stream.num_tokens for stream in self.streams)
            self.gateway.rate_limit.settle(self.key, used - self.reserved)
        for stream in self.streams:
            await stream.close()

    async def _results(self) -> list[JobResult]:
        try:
            return await together(stream.result() for stream in self.streams)
        except FleetError:
            await self.cancel()
            raise

    def _too_late(self) -> ApiError:
        if self.gateway.leaving.done():
            return ApiError(
                503, "This server is going down; ask again.", kind="server_error", code="service_unavailable",
                headers={"retry-after": "1", "connection": "close"},
            )  # fmt: skip
        return ApiError(
            408, "The answer took too long; use stream or background.", kind="timeout", code="request_timeout"
        )


async def start(
    gateway: Gateway,
    key: ApiKey,
    body: GenerationBody,
    requests: Sequence[Mapping[str, Any]],
    prefix: str,
    default_max_tokens: int | None,
) -> tuple[Answer, ModelCard]:
    """Submits a job for each of ``requests``: all of them or none.

    Args:
        default_max_tokens: for a request that does not say; None is as far as the model's context goes.

    Raises:
        ApiError, FleetError.
    """
    await gateway.fleet.open()
    card = await gateway.fleet.card(body.model)
    check_model(key, card)
    _check_depth(key, card, len(requests))
    fields = _complete(body, card, default_max_tokens)
    num_choices = body.n or 1
    reserved = len(requests) * max(1, num_choices) * max(1, body.asked_tokens or ESTIMATED_TOKENS)
    if body.background:
        # Nobody settles it: it costs the most that it can.
        most = fields.get("max_tokens", card.default_sampling.max_tokens) or card.max_model_len
        reserved = sum(_num_prompt_tokens({**fields, **each}) + num_choices * most for each in requests)
    if key.tokens_per_minute is not None:
        reserved = min(reserved, key.tokens_per_minute)
    allowance = await gateway.rate_limit.admit(key, reserved)
    answer = Answer(
        gateway,
        key,
        new_id(prefix, len(requests)),
        [],
        num_choices,
        bool(body.background),
        reserved,
        {**rate_headers(key, allowance), **ignored_headers(body)},
    )
    answer.headers[JOB_HEADER] = answer.answer_id
    try:
        for job_id, own in zip(jobs_of(answer.answer_id), requests, strict=True):
            answer.streams.append(
                await _submit(gateway, key, job_id, {**fields, **own}, keep=not body.stream)
            )
        await answer.accepted()
    except BaseException:
        await answer.cancel()
        await answer.end()
        raise
    return answer, card


def _check_depth(key: ApiKey, card: ModelCard, num_jobs: int) -> None:
    """Raises: ApiError: so many can never be open together, however late they come back."""
    most = card.max_queue_depth
    if tenant_of(key):
        most = min(most, card.max_tenant_depth, key.max_open or most)
    if num_jobs > most:
        raise ApiError(
            400, f"prompt: {most} prompts in one request at most.", param="prompt", code="invalid_value"
        )


def _complete(body: GenerationBody, card: ModelCard, default_max_tokens: int | None) -> dict[str, Any]:
    fields = body.job_fields(card)
    fields["model"] = card.name
    if body.asked_tokens is not None:
        fields["max_tokens"] = body.asked_tokens
    elif default_max_tokens is not None:
        fields["max_tokens"] = default_max_tokens
    elif card.default_sampling.max_tokens is None:
        fields["max_tokens"] = max(card.max_model_len, body.min_tokens or 0)
    return fields


def _num_prompt_tokens(request: Mapping[str, Any]) -> int:
    """About: only a worker can count those of a text."""
    if "prompt_token_ids" in request:
        return len(request["prompt_token_ids"])
    texts = [str(message.get("content") or "") for message in request.get("messages", ())]
    return sum(map(len, [*texts, request.get("prompt", "")])) // _CHARS_PER_TOKEN


async def _submit(
    gateway: Gateway, key: ApiKey, job_id: str, fields: dict[str, Any], *, keep: bool
) -> AsyncTokenStream:
    if key.lane != "interactive":
        # A job of the batch lane lives alone unless somebody says otherwise: here the client decides.
        fields = {"detached": False, **fields, "lane": key.lane}
    return await gateway.fleet.start(
        {**fields, "tenant": tenant_of(key)}, job_id=job_id, max_open=key.max_open, timeout=None, keep=keep
    )
