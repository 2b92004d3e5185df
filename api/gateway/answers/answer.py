"""Answer: submits the jobs of a request and turns their tokens into a response.

Both endpoints that generate take these steps: find the model, check the limits, submit the jobs, wait up to a
second until workers accept them, then return a stream or the whole answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.client.asynchronous.token_stream import AsyncTokenStream
from pagefleet.api.contract.chat_message import Reading
from pagefleet.api.contract.errors import FleetError, RedisUnavailable
from pagefleet.api.contract.messages import JobResult, ModelCard
from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import card_for, tenant_of
from pagefleet.api.gateway.access.rate_limit import ESTIMATED_TOKENS, charge_of, rate_headers
from pagefleet.api.gateway.answers.event_stream import EventStream, disconnected
from pagefleet.api.gateway.answers.gather_all import gather_all
from pagefleet.api.gateway.answers.generation_body import GenerationBody, StreamOptions
from pagefleet.api.gateway.answers.job_ids import jobs_of, new_id
from pagefleet.api.gateway.answers.relay import Relay
from pagefleet.api.gateway.answers.shape import Shape
from pagefleet.api.gateway.context import Gateway
from pagefleet.api.gateway.http import sse
from pagefleet.api.gateway.http.body import ignored_headers
from pagefleet.api.gateway.http.errors import ApiError, api_error
from pagefleet.api.gateway.http.sliced_json import large_answer

JOB_HEADER: Final = "x-pagefleet-job"
_ACCEPT_WITHIN_S: Final = 1.0


@dataclass(slots=True)
class Answer:
    """The jobs of one request, which this gateway reads."""

    gateway: Gateway
    answer_id: str
    streams: list[AsyncTokenStream]
    num_choices: int
    background: bool
    headers: dict[str, str] = field(default_factory=dict)
    reading: Reading | None = None
    """How the text of each choice is parsed into a message."""

    async def accepted(self) -> None:
        """Wait up to a second until workers accept the jobs. Raises: FleetError: a job was rejected."""
        await gather_all(stream.accepted(_ACCEPT_WITHIN_S) for stream in self.streams)

    def stream(self, shape: Shape, options: StreamOptions) -> Response:
        position = sse.Position(
            [0] * (len(self.streams) * self.num_choices),
            bool(options.include_usage),
            shape.wants_token_ids,
            continuous_usage=bool(options.continuous_usage_stats),
        )
        relay = Relay(
            self.streams,
            self.num_choices,
            shape,
            position,
            self.gateway.settings.gateway_keep_alive_s,
            self._on_failure,
            can_return=bool(options.include_ids),
        )
        return EventStream(self.gateway, relay, self.headers, self.on_gone, self.end)

    async def whole(self, request: Request, shape: Shape) -> Response:
        """Wait for the jobs and return the response. Raises: ApiError."""
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
            found = results.result()
            return await large_answer(lambda: shape.whole(found), self.headers)
        except FleetError as error:
            raise api_error(error, shape.names) from None
        finally:
            for task in (results, gone):
                task.cancel()
            await asyncio.gather(results, gone, return_exceptions=True)
            await self.end()

    async def later(self) -> Response:
        """Return the 202 response of a background request."""
        await self.end()
        place = f"/v1/jobs/{self.answer_id}"
        body = {"id": self.answer_id, "object": "job", "status": "queued"}
        return JSONResponse(body, 202, {**self.headers, "location": place})

    def cancel(self) -> None:
        """Cancel the jobs. The client does not know their ids yet."""
        for stream in self.streams:
            if not stream.has_ended:
                self.gateway.fleet.discard(stream.job_id)

    async def on_gone(self, returns_within_s: float = 0.0) -> None:
        """Stop reading because the client has disconnected. Jobs without another reader end.

        Args:
            returns_within_s: time in which the client can reconnect before they end.
        """
        if self.background:
            return
        for stream in self.streams:
            await stream.close(after_s=returns_within_s)

    async def end(self) -> None:
        """Stop reading; the jobs continue."""
        for stream in self.streams:
            await stream.leave_running()

    async def _on_failure(self) -> None:
        """End the other jobs of the answer: it fails as a whole."""
        for stream in self.streams:
            with suppress(FleetError):
                await stream.cancel()
            # If Redis is unavailable, this ends the job later.
            await stream.close()

    async def _results(self) -> list[JobResult]:
        try:
            return await gather_all(stream.result() for stream in self.streams)
        except FleetError:
            self.cancel()
            raise

    def _too_late(self) -> ApiError:
        if self.gateway.leaving.done():
            return ApiError(
                503, "The server is shutting down; retry.", kind="server_error", code="service_unavailable",
                headers={"retry-after": "1", "connection": "close"},
            )  # fmt: skip
        return ApiError(
            408,
            "The answer took too long; set stream or background.",
            kind="timeout",
            code="request_timeout",
        )


async def start(
    gateway: Gateway,
    key: ApiKey,
    body: GenerationBody,
    requests: Sequence[Mapping[str, Any]],
    prefix: str,
    default_max_tokens: int | None,
) -> tuple[Answer, ModelCard]:
    """Submit a job for each of ``requests``: all of them or none.

    Args:
        requests: the fields of each job that ``body`` does not have.
        default_max_tokens: of a request without a limit; None is the end of the model's context.

    Raises:
        ApiError, RedisUnavailable.
    """
    await gateway.fleet.open()
    num_choices = max(1, body.n or 1)
    share = num_choices * max(1, body.asked_tokens or default_max_tokens or ESTIMATED_TOKENS)
    shares = _shares(key, share, len(requests))
    allowance = await gateway.rate_limit.admit(key, sum(shares))
    headers = {**rate_headers(key, allowance), **ignored_headers(body)}
    answer = Answer(gateway, new_id(prefix, len(requests)), [], num_choices, bool(body.background), headers)
    answer.headers[JOB_HEADER] = answer.answer_id
    try:
        card = await card_for(gateway.fleet, key, body.model)
        _check_depth(key, card, len(requests), num_choices)
        ttl = _result_ttl(key, card, body.result_ttl_s, gateway.fleet.settings.result_ttl_s)
        fields = {**_in_lane(key), **_complete(body, card, default_max_tokens), "tenant": tenant_of(key)}
        fields["result_ttl_s"] = ttl
        answer.reading = fields.get("reading")
        for job_id, own, num_reserved in zip(jobs_of(answer.answer_id), requests, shares, strict=True):
            stream = await gateway.fleet.start(
                {**fields, **own},
                job_id=job_id,
                max_open=key.max_open,
                max_stored=key.max_stored_bytes,
                charge=charge_of(key, num_reserved),
                keep=not body.stream,
            )
            answer.streams.append(stream)
        await answer.accepted()
    except BaseException as error:
        answer.cancel()
        if isinstance(error, RedisUnavailable) and error.job_id is not None:
            # The job may have been submitted, but the client gets an error.
            gateway.fleet.discard(error.job_id)
        await answer.end()
        if isinstance(error, ApiError | FleetError) and not isinstance(error, RedisUnavailable):
            # Submitted jobs settle their own share at their end.
            gateway.rate_limit.give_back(key, sum(shares[len(answer.streams) :]))
        if isinstance(error, FleetError):
            raise api_error(error, body.names) from None
        raise
    return answer, card


def _shares(key: ApiKey, share: int, num_jobs: int) -> list[int]:
    """Return the number of tokens that each job reserves; together at most the limit of the key."""
    total = share * num_jobs
    if key.tokens_per_minute is not None:
        total = min(total, key.tokens_per_minute)
    each, rest = divmod(total, num_jobs)
    return [each + (index < rest) for index in range(num_jobs)]


def _check_depth(key: ApiKey, card: ModelCard, num_jobs: int, num_choices: int) -> None:
    """Raises: ApiError: the request can never be admitted, because it exceeds a limit of open jobs."""
    most = card.max_queue_depth
    if tenant_of(key):
        most_choices = min(card.max_tenant_depth, key.max_open or card.max_tenant_depth)
        if num_choices > most_choices:
            raise ApiError(
                400,
                f"n: the limit is {most_choices} choices per request.",
                param="n",
                code="invalid_value",
            )
        most = min(most, most_choices // num_choices)
    if num_jobs > most:
        raise ApiError(
            400, f"prompt: the limit is {most} prompts per request.", param="prompt", code="invalid_value"
        )


def _result_ttl(key: ApiKey, card: ModelCard, asked: int | None, default: int) -> int | None:
    """Return the ``result_ttl_s`` of the jobs: the request's, else the default within the key's limit.

    Raises:
        ApiError: the request exceeds the key's limit.
    """
    most = key.max_result_ttl_s
    if most is None:
        return asked
    if asked is not None and asked > most:
        raise ApiError(
            400,
            f"result_ttl_s: {asked} is more than this API key allows; ask for {most} s at most.",
            param="result_ttl_s",
            code="invalid_value",
        )
    return min(default, most, card.max_result_ttl_s) if asked is None else asked


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


def _in_lane(key: ApiKey) -> dict[str, Any]:
    if key.lane == "interactive":
        return {}
    # By default jobs of the batch lane are detached; over HTTP the client decides with `background`.
    return {"detached": False, "lane": key.lane}
