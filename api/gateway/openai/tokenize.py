"""``POST /tokenize`` and ``/detokenize`` in vLLM's format. A worker of the model does the work."""

from __future__ import annotations

import asyncio
from typing import Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pagefleet.api.gateway.access.api_keys import ApiKey
from pagefleet.api.gateway.access.authentication import card_for
from pagefleet.api.gateway.access.rate_limit import rate_headers
from pagefleet.api.gateway.context import Gateway, caller_of
from pagefleet.api.gateway.http.body import RequestBody, ignored_headers, read_body, refuse
from pagefleet.api.gateway.openai.chat_message import Message

_UNSUPPORTED: Final = {
    "continue_final_message": "not supported; the last message cannot be continued",
    "chat_template": "not supported; the model's chat template is used",
    "chat_template_kwargs": "not supported here",
    "tools": "not supported here",
}


class TokenizeBody(RequestBody):
    model: str | None = Field(None, description="optional if the fleet has one model")
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, description="instead of prompt")
    add_special_tokens: bool | None = Field(None, description="default: true for a prompt")
    add_generation_prompt: bool = Field(True, description="add the beginning of the assistant's next message")
    return_token_strs: bool | None = Field(None, description="return the tokens as strings too")


class DetokenizeBody(RequestBody):
    model: str | None = Field(None, description="optional if the fleet has one model")
    tokens: list[int]


async def tokenize(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, TokenizeBody, gateway.settings)
    refuse(body, _UNSUPPORTED)
    headers = await _admit(gateway, key, body.model)
    messages = None
    if body.messages is not None:
        messages = [message.job_message(index) for index, message in enumerate(body.messages)]
    async with gateway.tenant_slots.acquire(key.tenant):
        found = await gateway.fleet.tokenize(
            body.prompt,
            messages=messages,
            model=body.model,
            add_special_tokens=body.add_special_tokens,
            add_generation_prompt=body.add_generation_prompt,
            return_token_strs=bool(body.return_token_strs),
        )
    answer = {
        "count": found.count,
        "max_model_len": found.max_model_len,
        "tokens": found.token_ids,
        "token_strs": found.token_strs,
    }
    # Encoding a long list takes a while; in a thread it does not delay streams.
    return await asyncio.to_thread(JSONResponse, answer, headers={**headers, **ignored_headers(body)})


async def detokenize(request: Request) -> Response:
    gateway, key = caller_of(request)
    body = await read_body(request, DetokenizeBody, gateway.settings)
    headers = await _admit(gateway, key, body.model)
    async with gateway.tenant_slots.acquire(key.tenant):
        prompt = await gateway.fleet.detokenize(body.tokens, model=body.model)
    return JSONResponse({"prompt": prompt}, headers={**headers, **ignored_headers(body)})


async def _admit(gateway: Gateway, key: ApiKey, model: str | None) -> dict[str, str]:
    """Count the request, but no tokens, against the key's limits. Raises: ApiError, RedisUnavailable."""
    headers = rate_headers(key, await gateway.rate_limit.admit(key, 0))
    await card_for(gateway.fleet, key, model)
    return headers
